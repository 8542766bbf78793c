"""The files of conf say what the papers say: what every experiment compares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from analysis.figures import REGISTRY
from compositions import EXPERIMENTS, points
from cpt_lab import config
from cpt_lab.interventions.prune_layers import PruneLayers
from cpt_lab.interventions.scale_transplant import ScaleTransplant
from cpt_lab.interventions.soup import Soup
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.specs import Evaluation, HubCheckpoint, Intermediate, Spectra, SpectralWarmup, TrainedCheckpoint, digest, key
from long_tables import rest_slow
from paper_experiments import BILLION, POST_TRAINED, TABLE_2, change, hub_id, loaded, mixture_name, mixture_of, start_of, table

PRUNED = {"gpt2_small": 12, "gpt2_medium": 24, "gpt2_large": 36, "pythia_160m": 12, "pythia_410m": 24, "pythia_1b": 16}
PAIRS = ("math_inst", "math_text", "inst_text", "inst_code", "math_code")
BATCHES = {"1b": 512, "7b": 1024, "13b": 2048, "32b": 2048}
EXPECTED = {
    *(f"rewind_{name}" for name in ("1b", "7b", "13b", "32b", "1b_20b", "7b_inst")),
    *(f"truncate_{name}" for name in ("1b", "7b", "13b", "7b_inst")),
    *(f"soup_{pair}_{size}" for pair in PAIRS for size in ("1b", "7b")),
    "transplant_1b",
    "fingerprint",
    *(f"{kind}_{model}" for kind in ("scale_transplant", "rotate") for model in POST_TRAINED),
    *(f"{kind}_{model}" for kind in ("prune", "importance") for model in PRUNED),
    *(f"{kind}_{model}" for kind in ("entropy", "similarity") for model in POST_TRAINED),
    *(f"spectra_{size}" for size in BATCHES),
    *(f"post_training_{model}" for model in POST_TRAINED),
    *("heterogeneity_1b", "evolution_1b", "post_training_tiny"),
    *(f"lifecycle_{scale}" for scale in ("tiny", "d8", "d12", "d16")),
    *(f"pretrain_{budget}" for budget in ("tiny", "1b_20b", "1b_100b", "1b_200b", "1b_400b")),
    *(f"cpt_{size}_{mix}" for size in ("1b", "7b") for mix in TABLE_2),
    *(f"cpt_1b_from_{budget}b_math" for budget in (20, 100, 400)),
    *("cpt_tiny", "paper_tiny"),
}
# Of experiments that are one but for the model, the fast tests take the smallest: its siblings are composed with the slow ones.
SIBLINGS = {
    *("rewind_7b", "rewind_13b", "rewind_32b", "rewind_7b_inst", "truncate_7b", "truncate_13b", "truncate_7b_inst"),
    *(f"soup_{pair}_7b" for pair in PAIRS),
    *(f"{kind}_{model}" for kind in ("scale_transplant", "rotate", "entropy", "similarity") for model in list(POST_TRAINED)[1:]),
    *(f"{kind}_{model}" for kind in ("prune", "importance") for model in PRUNED if model not in ("gpt2_small", "pythia_160m")),
    *("lifecycle_d12", "lifecycle_d16"),
    *(f"pretrain_1b_{budget}b" for budget in (100, 200, 400)),
    *(f"cpt_{size}_{mix}" for size in ("1b", "7b") for mix in TABLE_2 if (size, mix) != ("1b", "math_20b")),
    *(f"cpt_1b_from_{budget}b_math" for budget in (100, 400)),
}
FAST = {
    "quickstart",
    "rewind_1b",
    "truncate_1b",
    "soup_math_inst_1b",
    "rotate_qwen25_math_1_5b",
    "prune_gpt2_small",
    "spectra_1b",
    "fingerprint",
}


def first(experiments: Iterable[str]) -> list[Any]:
    """Parameters of a test of every experiment: one of each kind is fast."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in experiments]


def each(experiments: Iterable[str], prefix: str = "") -> list[Any]:
    """Parameters of a test: experiments by their names, or by what stands behind a prefix; siblings are slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if prefix + name in SIBLINGS else name for name in experiments]


def test_every_experiment_of_the_papers_is_there() -> None:
    assert set(EXPERIMENTS) >= EXPECTED


@pytest.mark.parametrize("experiment", first(EXPERIMENTS))
def test_every_experiment_composes_into_valid_points_with_names_of_their_own(experiment: str) -> None:
    made = points(f"+experiment={experiment}")
    assert len({point.name for point in made}) == len(made) > (0 if experiment.startswith(("pretrain", "cpt")) else 1)
    assert len({digest(point.spec) for point in made}) == len(made)
    assert all(point.varies.keys() == made[0].varies.keys() for point in made)
    assert all("." not in column and "@" not in column for column in made[0].varies)


@pytest.mark.parametrize("experiment", first(sorted(EXPECTED)))
def test_an_experiment_is_named_after_its_file_and_asks_one_question(experiment: str) -> None:
    parsed = config.parse(points(f"+experiment={experiment}")[0].config)
    assert parsed.study == experiment
    assert parsed.question.endswith("?")


@pytest.mark.parametrize(
    "experiment",
    rest_slow(sorted(name for name in EXPECTED if name.startswith(("rewind", "truncate", "soup", "transplant"))), fast=1),
)
def test_continual_pretraining_starts_from_the_release_with_the_batch_of_its_size(experiment: str) -> None:
    size = next(part for part in experiment.split("_") if part in BATCHES)
    for point in points(f"+experiment={experiment}"):
        tuned = loaded(point)
        assert isinstance(tuned, TrainedCheckpoint)
        assert tuned.recipe.batch_sequences == BATCHES[size]
        assert tuned.shape.name == f"olmo2_{size}"
        if experiment == "rewind_1b_20b":
            assert isinstance(tuned.start, TrainedCheckpoint)
            assert tuned.start.mixture.tokens == 20 * BILLION
            assert (tuned.start.recipe.lr, tuned.start.recipe.batch_sequences) == (4e-4, 512)
        else:
            assert isinstance(tuned.start, HubCheckpoint)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1b", "7b"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_soup_goes_from_its_first_domain_to_its_second_in_steps_of_a_tenth(pair: str, size: str) -> None:
    made = points(f"+experiment=soup_{pair}_{size}")
    changes = [(point, soup) for point in made if isinstance(soup := change(point), Soup)]
    shares = [tuple(part.weight for part in soup.members) for _, soup in changes]
    assert shares == [(pytest.approx(1 - step / 10), pytest.approx(step / 10)) for step in range(11)]
    first, second = (f"{domain}_20b" for domain in pair.split("_"))
    for point, soup in changes:
        own, other = loaded(point), soup.members[1].checkpoint
        assert isinstance(own, TrainedCheckpoint)
        assert isinstance(other, TrainedCheckpoint)
        assert (own.mixture.name, other.mixture.name, other.start) == (first, second, own.start)


@pytest.mark.parametrize("size", ["1b", pytest.param("7b", marks=pytest.mark.slow)])
def test_soups_of_math_stand_beside_training_on_the_mixture(size: str) -> None:
    beside = {
        pair: [str(point.varies["mixture"]) for point in points(f"+experiment=soup_{pair}_{size}") if change(point) is None]
        for pair in ("math_inst", "math_text")
    }
    assert beside == {"math_inst": ["10binst_10bdm_20b"], "math_text": ["16bdm_20b", "8bdm_20b"]}


@pytest.mark.parametrize("experiment", each(sorted(name for name in EXPECTED if name.startswith("truncate"))))
def test_a_truncation_goes_from_nothing_to_everything(experiment: str) -> None:
    changes = [change(point) for point in points(f"+experiment={experiment}")]
    assert [one.percent for one in changes if isinstance(one, Truncate)] == list(range(0, 101, 10))


@pytest.mark.parametrize("model", each(POST_TRAINED, "scale_transplant_"))
def test_scaled_transplants_take_the_models_and_the_factors_of_the_paper(model: str) -> None:
    made = points(f"+experiment=scale_transplant_{model}")
    base, instruct, reasoning = POST_TRAINED[model]
    assert [hub_id(loaded(point)) for point in made] == [instruct, instruct, reasoning, reasoning]
    _, of_instruct, _, of_reasoning = (change(point) for point in made)
    assert isinstance(of_instruct, ScaleTransplant)
    assert isinstance(of_reasoning, ScaleTransplant)
    assert hub_id(of_instruct.base) == hub_id(of_reasoning.base) == base
    assert len(set(of_instruct.alpha or ())) == 1
    factors = dict(zip(of_reasoning.roles, of_reasoning.alpha or (), strict=True))
    assert factors == {**dict.fromkeys(("q", "k", "v", "gate", "up", "down"), 1.0), "o": 1.4}


@pytest.mark.parametrize("model", each(POST_TRAINED, "rotate_"))
def test_rotations_are_undone_and_restored_on_both_sides_of_both_parts_of_both_models(model: str) -> None:
    made = points(f"+experiment=rotate_{model}")
    rows = {tuple(point.varies[name] for name in ("intervention", "side", "part")) for point in made if point.varies["side"] is not None}
    assert rows == {
        (kind, side, part) for kind in ("rotate_ablate", "rotate_restore") for side in ("out", "in") for part in ("attention", "mlp")
    }
    assert len(made) == 2 * (1 + len(rows)) + 1
    (by_the_other,) = (point for point in made if point.varies["source"] is not None)
    _, instruct, reasoning = POST_TRAINED[model]
    restored = change(by_the_other)
    assert restored is not None
    assert [hub_id(source) for source in restored.sources().values()] == [instruct]
    assert hub_id(loaded(by_the_other)) == reasoning


@pytest.mark.slow
@pytest.mark.parametrize("model", PRUNED)
def test_pruning_compares_ways_to_choose_up_to_a_third_of_the_layers(model: str) -> None:
    made = points(f"+experiment=prune_{model}")
    assert loaded(made[0]).shape.num_layers == PRUNED[model]
    assert all(isinstance(loaded(point), HubCheckpoint) for point in made)
    changes = [one for point in made if isinstance(one := change(point), PruneLayers)]
    assert len(changes) == len(made) - 1
    counts = {int(str(point.varies["count"])) for point in made if point.varies["count"] is not None}
    assert (min(counts), max(counts)) == (1, PRUNED[model] // 3)
    assert {point.varies["by"] for point in made} == {None, "last_n", "random", "ranking"}
    (ranking,) = {ranking.criterion for one in changes for ranking in one.rankings()}
    assert ranking == "pl_alpha"


@pytest.mark.slow
@pytest.mark.parametrize("size", BATCHES)
def test_spectra_are_of_the_release_and_of_its_continual_pretraining_alone_and_against_it(size: str) -> None:
    release, *trained = [table(point) for point in points(f"+experiment=spectra_{size}")]
    assert isinstance(release.checkpoint, HubCheckpoint)
    assert release.checkpoint.shape.name == f"olmo2_{size}"
    assert release.against is None
    domains = ("math", "inst", "code", "text") if size in ("1b", "7b") else ("math", "text")
    found = set()
    for one in trained:
        assert isinstance(one.checkpoint, TrainedCheckpoint)
        assert one.checkpoint.start == release.checkpoint
        assert one.checkpoint.recipe.batch_sequences == BATCHES[size]
        assert one.against in (None, release.checkpoint)
        found.add((one.checkpoint.mixture.name, one.against is None))
    assert found == {(f"{domain}_20b", alone) for domain in domains for alone in (True, False)}
    assert key(trained[0].checkpoint) == key(loaded(points(f"+experiment=rewind_{size}")[0]))


@pytest.mark.slow
def test_heterogeneity_compares_three_domains_on_a_base_of_much_and_of_little_text() -> None:
    found = set()
    for one in map(table, points("+experiment=heterogeneity_1b")):
        assert isinstance(one.checkpoint, TrainedCheckpoint)
        assert one.checkpoint.start == one.against
        tokens = one.against.mixture.tokens if isinstance(one.against, TrainedCheckpoint) else None
        found.add((one.checkpoint.mixture.name, tokens))
        assert one.indices
        assert {"frobenius_norm", "agreement_residual_max"} <= set(one.measures)
    assert found == {(f"{domain}_20b", tokens) for domain in ("math", "inst", "text") for tokens in (20 * BILLION, None)}


def test_evolution_goes_from_20_billion_tokens_to_the_release() -> None:
    tables = [table(point) for point in points("+experiment=evolution_1b")]
    tokens = [one.checkpoint.mixture.tokens for one in tables if isinstance(one.checkpoint, TrainedCheckpoint)]
    assert tokens == [20 * BILLION, 100 * BILLION, 400 * BILLION]
    assert isinstance(tables[-1].checkpoint, HubCheckpoint)
    for one in tables:
        assert one.against is None
        assert {"frobenius_norm", "mp_edge", "rank_decay_alpha", "spectral_gap"} <= set(one.measures)


@pytest.mark.parametrize("model", rest_slow(POST_TRAINED, fast=1))
def test_post_training_compares_both_models_of_a_triple_with_their_base_matrix_by_matrix(model: str) -> None:
    tables = [table(point) for point in points(f"+experiment=post_training_{model}")]
    base, instruct, reasoning = POST_TRAINED[model]
    assert [hub_id(one.checkpoint) for one in tables] == [instruct, reasoning]
    for one in tables:
        assert one.against is not None
        assert hub_id(one.against) == base
        assert one.blocks == "matrices"
        assert {"svsm_mean", "svsm_std", "rotation_nf", "agreement_residual_max"} <= set(one.measures)


@pytest.mark.parametrize("experiment", each(["lifecycle_d8", "lifecycle_d12", "lifecycle_d16"]))
def test_the_lifecycle_is_watched_every_25_steps_of_three_seeds_and_of_a_spectral_warm_up(experiment: str) -> None:
    *plain, warm = (point.spec for point in points(f"+experiment={experiment}"))
    for run in (*plain, warm):
        assert isinstance(run, TrainedCheckpoint)
        assert run.shape.name == experiment.replace("lifecycle", "olmo2")
        assert run.watch is not None
        assert (run.watch.every, run.steps) == (25, 10_000)
        assert {"stable_rank", "pl_alpha", "rank_decay_alpha", "spectral_entropy", "spectral_gap"} <= set(run.watch.measures)
    assert [(run.start, run.recipe.seed) for run in plain if isinstance(run, TrainedCheckpoint)] == [(None, seed) for seed in range(3)]
    assert isinstance(warm, TrainedCheckpoint)
    assert warm.start == SpectralWarmup(reference=plain[0])


@pytest.mark.slow
def test_the_lifecycle_in_miniature_makes_every_figure_and_table_of_its_paper() -> None:
    made = points("+experiment=lifecycle_tiny")
    kinds = {kind.__name__ for kind in map(type, (point.spec for point in made))}
    assert kinds == {"TrainedCheckpoint", "Correlation", "Evaluation"}
    asked = set(config.parse(made[0].config).figures)
    assert asked == {name for name, figure in REGISTRY.items() if any(source.startswith("L ") for source in figure.PAPERS)}
    runs = [point.spec for point in made if isinstance(point.spec, TrainedCheckpoint)]
    assert {(run.shape.num_layers, run.recipe.seed) for run in runs if run.start is None} == {(n, s) for n in (4, 6, 8) for s in (0, 1)}
    pruned = {key(loaded(point)) for point in made if isinstance(point.spec, Evaluation)}
    assert pruned == {key(run) for run in runs if (run.shape.num_layers, run.recipe.seed, run.start) == (8, 0, None)}


@pytest.mark.slow
def test_post_training_in_miniature_makes_every_figure_and_table_of_its_paper() -> None:
    made = points("+experiment=post_training_tiny")
    kinds = {kind.__name__ for kind in map(type, (point.spec for point in made))}
    assert kinds == {"Spectra", "Rotations", "Evaluation", "AttentionEntropy", "AttentionMaps", "LayerSimilarity"}
    asked = set(config.parse(made[0].config).figures)
    assert asked == {name for name, figure in REGISTRY.items() if any(source.startswith("T ") for source in figure.PAPERS)}


@pytest.mark.slow
def test_the_main_paper_in_miniature_asks_for_all_its_figures_and_tables_and_makes_what_they_need() -> None:
    made = points("+experiment=paper_tiny")
    asked = set(config.parse(made[0].config).figures)
    assert asked == {name for name, figure in REGISTRY.items() if any(source.startswith("P ") for source in figure.PAPERS)}
    scored = [point for point in made if isinstance(point.spec, Evaluation)]
    unedited = {(start_of(loaded(point)), mixture_name(point)) for point in scored if change(point) is None}
    domains = [f"tiny_{name}_400k" for name in ("math", "text", "inst", "code", "math_text", "math_inst", "inst_code")]
    bases = ("tiny_pretrain_200k", "tiny_pretrain_800k")
    assert unedited == {*((None, base) for base in bases), *((base, name) for base in bases for name in domains)}
    rewound = {str(point.varies["criterion"]) for point in scored if point.varies["criterion"] is not None}
    assert rewound == {"random", "greedy", "scaled_norm_diff", "delta_norm", "agreement_diff", "agreement", "pl_ks", "pl_alpha"}
    soups = {(mixture_name(point), soup.members[1].name) for point in scored if isinstance(soup := change(point), Soup)}
    assert soups == {("tiny_math_400k", "reference"), ("tiny_math_400k", "inst"), ("tiny_inst_400k", "code")}
    on_the_way = [
        one.checkpoint
        for one in (table(point) for point in made if isinstance(point.spec, Spectra))
        if isinstance(one.checkpoint, Intermediate)
    ]
    assert [one.tokens for one in on_the_way] == [99_840, 200_192, 399_872]


@pytest.mark.parametrize(("one", "other"), [("math", "text"), ("math", "inst"), ("inst", "code")])
def test_a_tiny_mixture_is_the_mean_of_the_two_that_a_soup_is_made_of(one: str, other: str) -> None:
    tokens: dict[str, float] = {}
    for name in (one, other):
        for part in mixture_of(f"tiny_{name}_400k").parts:
            tokens[part.corpus] = tokens.get(part.corpus, 0) + part.tokens / 2
    assert {part.corpus: part.tokens for part in mixture_of(f"tiny_{one}_{other}_400k").parts} == tokens


@pytest.mark.slow
def test_another_base_differs_in_its_seed_alone() -> None:
    (twin,) = [
        point.spec for point in points("+experiment=post_training_tiny") if isinstance(point.spec, Spectra) and point.varies["of"] == "twin"
    ]
    assert isinstance(twin.checkpoint, TrainedCheckpoint)
    assert isinstance(twin.against, TrainedCheckpoint)
    assert (twin.checkpoint.recipe.seed, twin.against.recipe.seed) == (1, 0)
    assert twin.checkpoint.but(recipe=twin.against.recipe) == twin.against


def test_points_that_experiments_share_have_one_key() -> None:
    """Soups, rewinds and truncations of one size stand on the same CPT runs."""
    names = ("rewind_1b", "truncate_1b", "soup_math_inst_1b", "transplant_1b")
    assert len({key(loaded(points(f"+experiment={name}")[0])) for name in names}) == 1
