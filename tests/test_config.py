"""Every file of conf composes, fast composition equals Hydra's own, and only what is scientific reaches a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from command_line import here
from compositions import CONF, composed, hydra, points, whole
from cpt_lab import config
from cpt_lab import points as points_of
from cpt_lab.app import in_each_point
from cpt_lab.specs import Evaluation, HubCheckpoint, Spec, Spectra, TopOf, TrainedCheckpoint, key
from cpt_lab.spectra import PRESETS
from cpt_lab.spectra.choice import chosen
from hydra_plugins.cpt_packed._compose import compose
from long_tables import rest_slow
from spec_cases import rewind_of

GROUPS = {
    group.name: sorted(path.stem for path in group.glob("*.yaml"))
    for group in sorted(CONF.iterdir())
    if group.is_dir() and group.name not in ("corpus", "experiment", "local")
}
CORPORA = sorted(path.stem for path in (CONF / "corpus").glob("*.yaml"))
# P table 3 and appendix B.2: what `model` and `experiment` must say of the 1B and the 7B
OLMO2: dict[str, dict[str, Any]] = {
    "rewind_1b": {
        "id": "allenai/OLMo-2-0425-1B",
        "revision": "stage1-step1907359-tokens4001B",
        "sizes": {"hidden_size": 2048, "num_layers": 16, "num_heads": 16, "num_kv_heads": 16, "mlp_size": 8192},
        "batch_sequences": 512,
    },
    "rewind_7b": {
        "id": "allenai/OLMo-2-1124-7B",
        "revision": "stage1-step928646-tokens3896B",
        "sizes": {"hidden_size": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32, "mlp_size": 11008},
        "batch_sequences": 1024,
    },
}
LARGER = {
    "olmo2_13b": (5120, 40, 40, 40, 13824, "allenai/OLMo-2-1124-13B", "stage1-step596057-tokens5001B"),
    "olmo2_32b": (5120, 64, 40, 8, 27648, "allenai/OLMo-2-0325-32B", "stage1-step721901-tokens6056B"),
}
ONE_OF_EACH_SORT = ("quickstart", "rewind_7b", "soup_math_text_1b", "rotate_llama31_8b", "prune_gpt2_small")  # what their sweeps vary
FEW_POINTS = ("soup_math_text_1b", "rotate_llama31_8b", "quickstart")
ONE_POINT = ("intervention=rewind", "intervention.fraction=0.5", "criterion=random")
SETTINGS = {"none": (), "truncate": ("intervention.percent=20,50",), "dare": ("intervention.drop=0.5",)}
NOT_SCIENCE = (
    ("results=/somewhere/else",),
    ("workers=3", "packs=2", "max_attempts=1", "wait=true"),
    ("execution.device=cpu", "execution.threads=2", "execution.eval_batch=7", "execution.micro_batch_sequences=1"),
    ("execution.checkpoint_minutes=1",),
    ("tracking=off",),
    ("site=example_h100",),
    ("study=another", "question=why", "figures=[]"),
    ("hydra/launcher=slurm",),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", [name if name in FEW_POINTS else pytest.param(name, marks=pytest.mark.slow) for name in ONE_OF_EACH_SORT]
)
def test_fast_composition_equals_composing_each_point_whole(experiment: str) -> None:
    with hydra(f"+experiment={experiment}", "verb=plan") as (loader, master, sweep):
        fast = compose(loader, master, sweep)
        for index in {0, len(sweep) - 1, *range(3, len(sweep), 61)}:
            data, chosen = fast[index]
            assert {name: value for name, value in data.items() if name != "corpora"} == whole(loader, master, sweep[index])
            assert chosen == experiment


@pytest.mark.slow
def test_fast_composition_does_not_mix_up_points_of_several_choices() -> None:
    words = [
        "protocol=tiny,perplexity",
        "intervention=rewind",
        "intervention.fraction=0,0.5",
        "execution.threads=1,null",
        "question=a,'b c'",
    ]
    with hydra(*words) as (loader, master, sweep):
        fast = compose(loader, master, sweep)
        assert len(fast) == 16
        for (data, _), overrides in zip(fast[::3], sweep[::3], strict=True):
            assert {name: value for name, value in data.items() if name != "corpora"} == whole(loader, master, overrides)


def test_a_value_that_other_settings_refer_to_is_composed_with_them() -> None:
    words = ["intervention=rewind", "intervention.fraction=0,0.5", "question='${intervention.fraction} of ${intervention}'", "workers=1,2"]
    with hydra(*words) as (loader, master, sweep):
        fast = [data for data, _ in compose(loader, master, sweep)]
        assert [data["workers"] for data in fast] == [1, 2, 1, 2]
        assert [data["question"].partition(" of ")[0] for data in fast] == ["0", "0", "0.5", "0.5"]
        assert all(str(data["intervention"]) in data["question"] for data in fast)


def test_points_that_share_a_composition_do_not_see_the_values_of_one_another() -> None:
    one, other = composed("intervention=rewind", "intervention.fraction=0,0.5", "protocol.seed=1")
    assert (one["intervention"]["fraction"], other["intervention"]["fraction"]) == (0, 0.5)
    assert one["intervention"] is not other["intervention"]
    assert one["model"] is other["model"]


def test_what_no_point_can_do_without_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with hydra("intervention=rewind", "intervention.fraction=0,0.5", "results=/elsewhere") as (loader, master, sweep):
        monkeypatch.setattr(loader, "load_sweep_config", lambda *_: pytest.fail("composed again"))
        assert [data["results"] for data, _ in compose(loader, master, sweep)] == ["/elsewhere", "/elsewhere"]


@pytest.mark.parametrize("row", rest_slow(range(max(map(len, GROUPS.values()))), fast=6))
def test_every_file_of_every_group_composes(row: int) -> None:
    """The first files of all groups together, then the second ones, ..."""
    chosen = {group: names[row] for group, names in GROUPS.items() if row < len(names)}
    needed = ["tracking.uri=http://localhost:5000"] if chosen.get("tracking") == "server" else []  # what the file leaves to its user
    (data,) = composed(*(f"{group}={name}" for group, name in chosen.items()), *needed)
    parsed = config.parse(data)
    for group in chosen.keys() - {"training", "tracking", "spectra"}:
        value = getattr(parsed, group)
        assert (value["name"] if isinstance(value, dict) else value.name) == chosen[group]


def test_every_corpus_can_stand_in_a_mixture_under_the_name_of_its_file() -> None:
    parts = ",".join(f"{{corpus:{corpus},tokens:1000000,oversample:true}}" for corpus in CORPORA)
    (point,) = points("target=train", f"mixture.parts=[{parts}]")
    assert isinstance(point.spec, TrainedCheckpoint)
    assert [part.corpus.name for part in point.spec.mixture.parts] == CORPORA


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["rewind_1b", "rewind_7b"])
def test_the_rewind_of_the_paper_has_its_models_its_data_and_its_recipe(experiment: str) -> None:
    expected = OLMO2[experiment]
    made = points(f"+experiment={experiment}")
    change = rewind_of(made[1].spec)
    base, tuned = change.base, made[1].spec.loaded if isinstance(made[1].spec, Evaluation) else None
    assert isinstance(base, HubCheckpoint)
    assert isinstance(tuned, TrainedCheckpoint)
    assert (base.id, base.revision) == (expected["id"], expected["revision"])
    assert expected["sizes"].items() <= base.shape.model_dump().items()
    assert (base.shape.vocab_size, base.shape.context, base.shape.rope_theta, base.shape.head_dim) == (100352, 4096, 500000.0, 128)
    assert tuned.start == base
    assert [(part.corpus.name, part.tokens) for part in tuned.mixture.parts] == [("dolmino_math", 20_000_000_000)]
    recipe = tuned.recipe
    assert (recipe.batch_sequences, recipe.sequence_length) == (expected["batch_sequences"], 4096)
    assert (recipe.lr, recipe.schedule, recipe.lr_final_share, recipe.warmup_tokens) == (4e-5, "linear", 0.0, 0)
    assert (recipe.betas, recipe.eps, recipe.weight_decay, recipe.precision) == ((0.9, 0.95), 1e-8, 0.1, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["rewind_1b", "rewind_7b"])
def test_the_rewind_of_the_paper_compares_both_directions_with_three_random_orders_from_0_to_all(experiment: str) -> None:
    made = points(f"+experiment={experiment}")
    rows = {tuple(point.varies[name] for name in ("criterion", "direction", "seed")) for point in made}
    criteria = ("scaled_norm_diff", "delta_norm", "agreement_diff", "agreement", "pl_ks", "pl_alpha", "greedy")
    both = {(criterion, direction, None) for criterion in criteria for direction in ("ascending", "descending")}
    assert rows == both | {("random", "ascending", seed) for seed in range(3)}
    fractions = sorted({float(str(point.varies["fraction"])) for point in made})
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert len(made) == len(fractions) * len(rows)


@pytest.mark.parametrize("model", LARGER)
def test_the_larger_models_have_the_sizes_of_the_paper(model: str) -> None:
    (point,) = points(f"model={model}", "base.from=hub", "target=train")
    assert isinstance(point.spec, TrainedCheckpoint)
    base = point.spec.start
    assert isinstance(base, HubCheckpoint)
    shape = base.shape
    sizes = (shape.hidden_size, shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.mlp_size)
    assert (*sizes, base.id, base.revision) == LARGER[model]


def test_the_learning_rate_of_pretraining_is_ten_times_that_of_continual_pretraining_as_in_the_paper() -> None:
    (data,) = composed("training=cpt", "training@pretrain.training=pretrain")
    parsed = config.parse(data)
    before, after = parsed.pretrain.training, parsed.training
    assert (before.lr, before.schedule, before.lr_final_share, before.warmup_tokens) == (4e-4, "cosine", 0.1, 700_000_000)
    assert before.lr * before.lr_final_share == pytest.approx(after.lr)


@pytest.mark.parametrize("words", rest_slow(NOT_SCIENCE, fast=3, one_name=True), ids=" ".join)
def test_a_key_does_not_depend_on_where_and_how_things_are_computed(words: tuple[str, ...]) -> None:
    (before,), (after,) = points(*ONE_POINT), points(*ONE_POINT, *words)
    assert key(before.spec) == key(after.spec)


@pytest.mark.parametrize(
    "word",
    [
        "criterion=delta_norm",
        "intervention.fraction=0.25",
        "training.lr=1e-5",
        "protocol.seed=1",
        "mixture=tiny_text",
        "pretrain.training.seed=1",
    ],
)
def test_a_key_depends_on_what_is_computed(word: str) -> None:
    (before,), (after,) = points(*ONE_POINT), points(*ONE_POINT, word)
    assert key(before.spec) != key(after.spec)


@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONF / "spectra").glob("*.yaml")))
def test_a_preset_of_spectra_measures_what_its_name_says(preset: str) -> None:
    (point,) = points("target=spectra", f"spectra={preset}")
    assert isinstance(point.spec, Spectra)
    assert point.spec.measures == chosen(preset, pair=point.spec.against is not None)
    assert set(PRESETS) >= {preset}


def test_a_table_of_spectra_is_of_the_checkpoints_and_settings_that_are_named() -> None:
    words = ("spectra.roles=[down,q]", "spectra.null_model=permute", "spectra.seed=4", "spectra.measures=[stable_rank,mp_edge]")
    made = points("target=spectra", "spectra.of=tuned,reference", "spectra.against=base,null", *words)
    assert [point.name for point in made] == ["tuned base", "tuned", "reference base", "reference"]
    tables = [point.spec for point in made]
    assert all(isinstance(table, Spectra) for table in tables)
    first, alone, other, _ = (table for table in tables if isinstance(table, Spectra))
    assert (first.roles, first.null_model, first.seed, first.measures) == (("q", "down"), "permute", 4, ("stable_rank", "mp_edge"))
    assert alone.checkpoint == first.checkpoint
    assert alone.against is None
    assert isinstance(first.checkpoint, TrainedCheckpoint)
    assert first.against == first.checkpoint.start == other.against
    assert other.checkpoint != first.checkpoint


@pytest.mark.slow
def test_an_integer_and_a_whole_float_are_one_key() -> None:
    study = ("intervention=rewind", "criterion=random")
    (one,), (other,) = points(*study, "intervention.fraction=1"), points(*study, "intervention.fraction=1.0")
    assert key(one.spec) == key(other.spec)


@pytest.mark.slow
def test_columns_are_short_where_that_is_unambiguous() -> None:
    groups = named("mixture=tiny_math,tiny_text", "mixture@reference.mixture=tiny_math,tiny_text", "intervention.fraction=0,1")
    assert list(groups[0]) == ["mixture", "reference_mixture", "fraction"]
    assert list(named("criterion.seed=0,1", "protocol.seed=0,1", "workers=1")[0]) == ["criterion.seed", "protocol.seed"]
    assert named("criterion=random,delta_norm")[1] == {"criterion": "delta_norm"}


def test_two_swept_choices_of_one_group_are_told_apart_by_their_places() -> None:
    sweep = [("mixture=a", "mixture@pretrain.mixture=b"), ("mixture=c", "mixture@pretrain.mixture=d")]
    assert points_of.named(sweep)[0] == {"mixture": "a", "pretrain_mixture": "b"}


def test_what_does_not_vary_is_no_part_of_a_name() -> None:
    names = [point.name for point in points("intervention=rewind", "criterion=random", "intervention.fraction=0,0.5", "protocol.seed=3")]
    assert names == ["fraction=0", "fraction=0.5"]


def test_fractions_that_differ_late_are_two_points() -> None:
    made = points("intervention=rewind", "criterion=random", "intervention.fraction=0.1234567,0.1234568")
    assert len(made) == 2


@pytest.mark.slow
def test_an_override_on_the_command_line_replaces_what_the_experiment_sweeps() -> None:
    one = points("+experiment=quickstart", "intervention.fraction=0.5")
    assert {selection(point.spec).fraction for point in one} == {0.5}
    assert len(one) == 7
    two = points("+experiment=quickstart", "intervention.fraction=0.5", "criterion=delta_norm")
    assert sorted(selection(point.spec).ranking.direction for point in two) == ["ascending", "descending"]
    assert {selection(point.spec).ranking.criterion for point in two} == {"delta_norm"}


@pytest.mark.parametrize(
    "names", rest_slow([("none", "truncate"), ("truncate", "none"), ("dare", "truncate", "none")], fast=1, one_name=True)
)
def test_a_setting_in_a_sweep_of_choices_is_of_those_that_have_it(names: tuple[str, ...]) -> None:
    swept = points(f"intervention={','.join(names)}", *(word for name in names for word in SETTINGS[name]))
    alone = [point for name in names for point in points(f"intervention={name}", *SETTINGS[name])]
    assert [key(point.spec) for point in swept] == [key(point.spec) for point in alone]


def test_a_setting_on_the_command_line_is_of_the_choices_of_an_experiment_that_have_it() -> None:
    swept = points("+experiment=quickstart", "criterion.seed=7", "intervention.fraction=0.5")
    rankings = [selection(point.spec).ranking for point in swept]
    assert {ranking.seed for ranking in rankings if ranking.criterion == "random"} == {7}
    assert {ranking.seed for ranking in rankings if ranking.criterion != "random"} == {None}


@pytest.mark.parametrize("value", ["[[0,1],[1,2]]", "null", "0.5", "'a, b.json'"])
def test_a_plain_setting_is_the_same_in_each_point(value: str) -> None:
    (word,) = in_each_point([f"intervention.heads={value}"])
    (one,) = composed("intervention=rewind", word)
    assert one["intervention"]["heads"] == OverridesParser.create().parse_override(f"intervention.heads={value}").value()


@pytest.mark.parametrize(
    "word", ["criterion.seed=1,2", "+criterion.seed=1", "~criterion.seed", "criterion.file=", "results=x", "criterion=a"]
)
def test_only_plain_settings_of_interventions_and_criteria_become_sweeps(word: str) -> None:
    assert in_each_point([word]) == [word]


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (
            "site.train_tokens_per_second=50000",
            "about 111.11 GPU hours, at 50,000 tokens a second per GPU (given by site.train_tokens_per_second)",
        ),
        ("+site.train_tokens_per_second.olmo2_1b=100000", "about 55.56 GPU hours, at 100,000 tokens a second per GPU (given by site."),
        ("+site.train_tokens_per_second.olmo2_7b=100000", "about 125.12 GPU hours, at 44,402 tokens a second per GPU (from FLOPs)"),
    ],
)
def test_a_plan_tells_of_a_training_run_its_sources_epochs_steps_hours_and_disk(tmp_path: Path, speed: str, said: str) -> None:
    run = ("target=train", "mixture=16bdm_20b", "model=olmo2_1b", "base.from=hub", "training=cpt", speed)
    answer = here("plan", *run, f"results={tmp_path}", COLUMNS="400")
    assert answer.code == 0, answer.err
    (line,) = (line for line in answer.out.splitlines() if "steps of" in line)
    sources = "dolmino_math 16,000,000,000 tokens (1.50 epochs), dclm 4,000,000,000 tokens (0.10 epochs)"
    assert f": {sources}; 9,536 steps of 2,097,152 tokens; {said}" in line
    assert "disk: about 421.6 GB at its fullest (token files 210.8 GB, " in answer.out


def test_a_speed_of_a_model_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    run = ("target=train", "mixture=16bdm_20b", "model=olmo2_1b", "base.from=hub", "training=cpt")
    answer = here("plan", *run, "+site.train_tokens_per_second.olmo2_lb=50000", f"results={tmp_path}")
    assert answer.code == 2
    assert "site.train_tokens_per_second: unknown model 'olmo2_lb' (did you mean olmo2_" in answer.err


def test_every_site_file_says_what_may_be_given_for_training() -> None:
    files = sorted((Path(__file__).parents[1] / "conf" / "site").glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        (line,) = (line for line in file.read_text().splitlines() if line.startswith("train_tokens_per_second: "))
        assert " # of one " in line, file


@pytest.mark.slow
def test_a_results_folder_may_be_meant_from_home(tmp_path: Path) -> None:
    answer = here("plan", "+experiment=transplant_1b", HOME=str(tmp_path), CPT_LAB_RESULTS="~/runs")
    assert answer.out.endswith(f"results: {tmp_path / 'runs'}\n")


def test_an_experiment_outside_the_repository_is_found_by_config_dir(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "halves.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - override /intervention: rewind\n  - override /criterion: random\n"
        "question: Half of them?\n"
        "hydra:\n  sweeper:\n    params:\n      intervention.fraction: 0.25,0.5,0.75\n"
    )
    answer = here("plan", "+experiment=halves", "--config-dir", str(tmp_path / "mine"), f"results={tmp_path / 'results'}")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("study halves: 3 points, 0 done")
    assert "Half of them?" in answer.out


def test_a_mistyped_setting_in_an_experiment_of_ones_own_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "typo.yaml").write_text("# @package _global_\nexecution:\n  eval_bach: 3\n")
    said = here("plan", "+experiment=typo", "--config-dir", str(tmp_path), f"results={tmp_path / 'results'}").refusal
    assert said.startswith("unknown setting 'execution.eval_bach' (did you mean execution.eval_batch")


def named(*words: str) -> list[dict[str, str]]:
    """The columns of each point of a sweep."""
    with hydra("intervention=rewind", *words) as (_, _, sweep):
        return points_of.named(sweep)


def selection(spec: Spec) -> TopOf:
    select = rewind_of(spec).select
    assert isinstance(select, TopOf)
    return select
