"""The papers' numbers: kept as they are printed, consistent with each other, and matched with what a study measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import made_up_study as made
import paper_studies as theirs
from analysis import papers
from analysis.papers import Printed, numbers
from analysis.papers.beside import Match, beside, sheet
from analysis.papers.measured import QUANTITIES, budget, of_checkpoint, prunings
from analysis.results import Results
from cpt_lab.interventions.prune_layers import FirstLayers, Layers, PruneLayers
from cpt_lab.interventions.scale_transplant import TABLE as ALPHAS
from cpt_lab.orderings import CRITERIA
from cpt_lab.specs import Evaluation, FolderCheckpoint, Patched, Ranking
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved


def one(paper: str, place: str, **of: str) -> Printed:
    (found,) = [each for each in numbers() if (each.paper, each.place) == (paper, place) and of.items() <= each.of.items()]
    return found


def values(place: str) -> dict[tuple[str, ...], tuple[float | None, float | None]]:
    return {tuple(each.of.values()): (each.value, each.error) for each in numbers() if (each.paper, each.place) == ("T", place)}


# ---------------------------------------------------------------------------------------------------------------- as data


@pytest.mark.parametrize(
    ("paper", "place", "of", "value", "error"),
    [
        ("P", "table 4", {"model": "OLMo-2-1B", "criterion": "greedy"}, 19.1, None),
        ("P", "table 4", {"model": "OLMo-2-7B", "criterion": "scaled_norm_diff"}, 6.0, None),
        ("P", "table 4", {"model": "OLMo-2-7B", "criterion": "pl_ks"}, 1.1, None),
        ("T", "table 1", {"tuned": "reasoning", "edit": "scale_transplant", "task": "gpqa"}, 9.45, 1.59),
        ("T", "table 2", {"tuned": "instruct", "edit": "rotate_restore attention out", "task": "mmlu"}, 41.28, 0.44),
        ("T", "table 3", {"model": "Qwen2.5-Math-1.5B", "tuned": "instruct", "role": "q"}, 0.9071, 0.0046),
        ("T", "table 3", {"model": "Llama-3.1-8B", "tuned": "reasoning", "role": "o"}, 1.4112, 0.0187),
        ("T", "table 3", {"model": "Qwen2.5-Math-7B", "tuned": "earlier base", "role": "down"}, 0.6495, 0.0140),
        ("T", "table 4", {"model": "Qwen2.5-14B", "tuned": "reasoning", "role": "o"}, 1.4, None),
        ("T", "table 5", {"model": "Qwen2.5-14B", "tuned": "instruct", "edit": "scale_transplant", "task": "gpqa"}, 35.60, 1.48),
        ("T", "table 6", {"model": "Llama-3.1-8B", "tuned": "instruct", "edit": "none", "task": "mmlu"}, 35.79, 1.43),
        (
            "T",
            "table 7",
            {"model": "Qwen2.5-Math-7B", "tuned": "reasoning", "edit": "rotate_restore mlp in", "task": "math500"},
            65.60,
            2.91,
        ),
        ("T", "table 8", {"model": "Llama-3.1-8B", "tuned": "instruct", "edit": "rotate_restore mlp in", "task": "gpqa"}, 6.01, 1.42),
    ],
)
def test_a_cell_is_as_it_is_printed(paper: str, place: str, of: dict[str, str], value: float, error: float | None) -> None:
    found = one(paper, place, **of)
    assert (found.value, found.error) == (value, error)


def test_every_table_has_a_cell_for_every_model_edit_and_task() -> None:
    sizes = Counter((each.paper, each.place) for each in numbers() if each.place.startswith("table"))
    models, tuned, tasks = 4, 2, 4
    assert sizes == {
        ("P", "table 4"): 2 * 7,
        ("T", "table 1"): tuned * 2 * tasks,
        ("T", "table 2"): tuned * 2 * tasks,
        ("T", "table 3"): 7 * (models * tuned + 2),
        ("T", "table 4"): 7 * models * tuned,
        ("T", "table 5"): 3 * tuned * 2 * tasks,
        ("T", "table 6"): models * tuned * 2 * tasks,
        ("T", "table 7"): models * tuned * 5 * tasks,
        ("T", "table 8"): models * tuned * 5 * tasks,
    }
    assert len({(each.paper, each.place, each.quantity, *sorted(each.of.items())) for each in numbers()}) == len(numbers())


def test_alpha_is_the_tenth_of_the_mean_that_the_table_before_it_prints() -> None:
    means = {tuple(row.values())[:3]: row["value"] for row in papers.table("t_table_3.csv")}
    for row in papers.table("t_table_4.csv"):
        printed = means[row["model"], row["tuned"], row["role"]]
        assert row["measured"] == printed
        assert float(row["value"]) == round(float(printed), 1)


def test_the_scales_of_scale_transplant_are_those_of_the_table() -> None:
    for checkpoint, (output, other) in ALPHAS.items():
        model, tuned = papers.post_trained()[checkpoint]
        printed = {
            each.of["role"]: each.value
            for each in numbers()
            if each.place == "table 4" and each.of.get("tuned") == tuned and each.of["model"] == model
        }
        assert printed == {role: output if role == "o" else other for role in ("q", "k", "v", "o", "up", "gate", "down")}


def test_models_that_stand_in_several_tables_have_the_same_numbers_there() -> None:
    unedited = {of: cell for of, cell in values("table 7").items() if of[2] == "none"}
    accuracies = {**values("table 1"), **values("table 5")}
    assert {of: cell for of, cell in accuracies.items() if of[2] == "none"} == unedited
    lengths = {of: cell for of, cell in values("table 6").items() if of[2] == "none"}
    assert lengths == {of: cell for of, cell in values("table 8").items() if of[2] == "none"}


def test_table_2_prints_for_the_output_side_what_table_7_prints_for_the_input_side() -> None:
    restored = {of: cell for of, cell in values("table 2").items() if of[2] != "none"}
    assert {(*of[:2], "rotate_restore attention in", of[3]): cell for of, cell in restored.items()}.items() <= values("table 7").items()


def test_only_the_collapsed_model_has_dashes() -> None:
    dashes = {(each.place, *each.of.values()) for each in numbers() if each.value is None and each.low is None and each.high is None}
    collapsed = ("Qwen2.5-14B", "reasoning", "rotate_restore mlp in")
    assert dashes == {(place, *collapsed, task) for place in ("table 7", "table 8") for task in ("gsm8k", "math500", "mmlu", "gpqa")}


def test_criteria_are_called_as_here() -> None:
    assert {each.of["criterion"] for each in numbers() if "criterion" in each.of} <= set(CRITERIA)


def test_every_quantity_that_can_be_measured_is_printed_somewhere() -> None:
    printed = {each.quantity for each in numbers()}
    assert printed - {"worst_to_best_pruning"} == {
        *("accuracy", "generated_tokens", "svsm_mean", "alpha", "auc_difference", "rewind_gain", "rewindable_share"),
        *("truncation_relative_change", "single_head_change", "alpha_importance_spearman", "pruning_gain"),
        *("alpha_depth_exponent", "alpha_depth_r_squared"),
    }
    assert len(QUANTITIES) == 9


@pytest.mark.parametrize(("ours", "difference"), [(0.5, -0.19), (0.69, 0.0), (0.75, 0.0), (0.9, 0.06)])
def test_the_difference_to_a_range_is_from_its_nearer_end(ours: float, difference: float) -> None:
    printed = next(each for each in numbers() if each.quantity == "alpha_importance_spearman")
    assert printed.difference(ours) == pytest.approx(difference)
    assert printed.text() == "0.69 to 0.84"


# ------------------------------------------------------------------------------------------------------------- beside ours


def results(folder: Path, points: list[theirs.Point], right: dict[str, object]) -> Results:
    store, study = theirs.finished(folder, points, right)
    return Results(store, [study])


def share(count: int) -> np.ndarray:
    return (np.arange(theirs.DOCUMENTS) < count).astype(float)


@pytest.fixture
def rewound(tmp_path: Path) -> Results:
    """1B, scaled_norm_diff: 100 of 200 right unedited; up to 104 at 15 %, and back on the way to nothing."""
    right = {"ascending": (100, 104, 98, 40), "descending": (100, 90, 60, 40)}
    points = [theirs.rewind("scaled_norm_diff", direction, at) for direction in right for at in (0.0, 0.15, 0.25, 1.0)]
    counts = [count for of in right.values() for count in of]
    return results(tmp_path, points, {point.name: share(count) for point, count in zip(points, counts, strict=True)})


def found(matches: list[Match], quantity: str) -> Match:
    (match,) = [match for match in matches if match.theirs.quantity == quantity]
    return match


def test_a_rewind_study_of_the_papers_model_stands_beside_its_numbers(rewound: Results) -> None:
    matches = beside(rewound)
    area = found(matches, "auc_difference")
    ascending, descending = (np.array(counts) / 2 for counts in ((100, 104, 98, 40), (100, 90, 60, 40)))
    expected = np.trapezoid(ascending - descending, [0, 0.15, 0.25, 1])
    assert area.ours.value == pytest.approx(expected)
    assert area.theirs.value == 11
    assert area.difference == pytest.approx(expected - 11)
    gain = found(matches, "rewind_gain")
    assert (gain.ours.value, gain.difference) == (pytest.approx(2.0), pytest.approx(0.0))
    paired = share(104) - share(100)
    assert gain.ours.error == pytest.approx(100 * paired.std(ddof=1) / np.sqrt(theirs.DOCUMENTS))
    assert found(matches, "rewindable_share").ours.value == 25
    assert {match.unsure for match in matches} == {()}


def test_the_table_has_a_row_per_match_with_the_difference(rewound: Results) -> None:
    made_of = sheet(rewound)
    assert len(made_of.rows) == len(beside(rewound))
    name, cells = made_of.rows[0]
    assert name == "P table 4: auc difference [points x share of heads]"
    assert cells[2].value == pytest.approx(cells[1].value - 11)  # type: ignore[operator]


def test_truncation_is_compared_in_percent_of_the_unedited_model(tmp_path: Path) -> None:
    found = results(tmp_path, [theirs.truncated(70), theirs.truncated(100)], {"percent=70": share(85), "percent=100": share(100)})
    (match,) = [match for match in beside(found) if match.theirs.of["pretrain"] == "4T"]
    assert match.ours.value == pytest.approx(-15)
    assert match.difference == pytest.approx(-5)


def test_what_pruning_gains_is_counted_for_every_checkpoint_by_itself(tmp_path: Path) -> None:
    """Perplexity that two seeds of one model lose without the last layer, and without the one that alpha chooses."""
    lost = {0: {"last": 9.0, "alpha": 3.0}, 1: {"last": 6.0, "alpha": 4.0}}
    store, points, perplexity = Store(tmp_path), [], {}
    alpha = Ranking(criterion="pl_alpha", direction="ascending", shape=made.SHAPE, unit="layer")
    made.ranked(store, alpha, list(alpha.units))
    gone = {"whole": None, "last": Layers(layers=(1,)), "alpha": FirstLayers(ranking=alpha, count=1)}
    for seed, of_seed in lost.items():
        tuned = made.TUNED.but(recipe=made.RECIPE.but(seed=seed))
        for who, select in gone.items():
            checkpoint = tuned if select is None else Patched(tuned=tuned, interventions=(PruneLayers(select=select),))
            spec = Evaluation(checkpoint=checkpoint, protocol=made.PROTOCOL)
            points.append(Point(name=f"{who} of {seed}", varies={}, config={}, spec=spec))
            perplexity[f"{who} of {seed}"] = 20.0 + of_seed.get(who, 0.0)
    study = Study(name="pruned", points=tuple(points))
    for name, spec in resolved(store, points).items():
        metric = {"value": perplexity[name], "stderr": None, "n": 10, "higher_is_better": False}
        product = {"primary": "text/word_perplexity", "metrics": {"text/word_perplexity": metric}, "warnings": [], "seconds": 1.0}
        made.build(store, spec, {"results.json": product})
    gains = {one.points: one.value for one in prunings(Results(store, [study]))}
    assert gains == {("last of 0", "alpha of 0"): 3.0, ("last of 1", "alpha of 1"): 1.5}


def test_a_post_trained_model_stands_beside_every_table_it_is_in(tmp_path: Path) -> None:
    points = [theirs.post_trained(scaled=False), theirs.post_trained(scaled=True)]
    matches = beside(results(tmp_path, points, {"none": share(170), "scale_transplant": share(172)}))
    places = Counter((match.theirs.place, match.ours.points) for match in matches if match.theirs.quantity == "accuracy")
    assert places == {(f"table {n}", ("none",)): 1 for n in (1, 2, 7)} | {("table 1", ("scale_transplant",)): 1}
    lengths = [match for match in matches if match.theirs.quantity == "generated_tokens"]
    assert {match.ours.value for match in lengths} == {200.0}  # 600 tokens in 3 answers
    assert {match.theirs.place for match in lengths} == {"table 6", "table 8"}


def test_a_study_of_another_model_matches_nothing_and_says_so(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.0, 0.5))
    made.finish(store, study)
    found = Results(store, [study])
    assert beside(found) == []
    with pytest.raises(ValueError, match="no number of the papers is of what study 'made_up' measures"):
        sheet(found)


def test_what_a_folder_was_trained_on_is_unknown_and_named(tmp_path: Path) -> None:
    folder = FolderCheckpoint(path=str(tmp_path), weights_digest="0" * 16, shape=theirs.OLMO_1B)
    assert of_checkpoint(folder) == {"model": "OLMo-2-1B", "pretrain": None, "tuned": None}
    assert of_checkpoint(theirs.TUNED) == {"model": "OLMo-2-1B", "pretrain": "4T", "tuned": "math 20B"}
    assert of_checkpoint(theirs.BASE) == {"model": "OLMo-2-1B", "pretrain": "4T", "tuned": "nothing"}


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        *((3_896e9, "4T"), (20e9, "20B"), (100e9, "100B"), (6_056e9, "6T"), (41.5e9, "41.5B")),
        *((999_948_288, "1B"), (500e6, "0.5B"), (499_974_144, "0.5B"), (320, "320")),
    ],
)
def test_budgets_are_rounded_as_the_papers_round_them(tokens: float, text: str) -> None:
    assert budget(tokens) == text
