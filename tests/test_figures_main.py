"""The main paper's figures of points: what is drawn against sums by hand, and what is said where something is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import made_up_points as made
import made_up_study as curves_made
from analysis import figure_names, figures
from analysis.drawing import Heat
from analysis.paired import bootstrap
from analysis.results import Results
from cpt_lab.specs import HubCheckpoint, Ranking, key
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved
from figure_cases import MATH, OTHER, drawn, lines, mean, references, sheet, shown

# --------------------------------------------------------------------------------------------------------- rewind curves


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> Results:
    store, study = curves_made.make(tmp_path_factory.mktemp("rewound"))
    curves_made.finish(store, study)
    return Results(store, [study])


def test_a_rewind_curve_has_a_panel_per_metric_and_a_line_per_order(rewound: Results) -> None:
    drawing = drawn("rewind_curve", rewound)
    left, right = drawing.panels
    assert (left.x.text, left.y.text) == ("Heads rewound to the base [%]", "tiny_math: exact match strict [%]")
    assert right.y.text == "tiny_text: bits per byte (lower is better)"
    found = lines(left)
    assert list(found) == ["delta norm ascending", "delta norm descending", "random (mean of 2)"]
    assert list(found["delta norm ascending"].y) == pytest.approx([90, 85, 70, 45, 10])
    assert [(mark.label, mark.y) for mark in references(left)] == [("nothing rewound", pytest.approx(90))]


def test_bars_of_a_rewind_curve_are_paired_with_the_unedited_model(rewound: Results) -> None:
    bars = lines(drawn("rewind_curve", rewound).panels[0])["delta norm ascending"].bars
    table = rewound.points[(rewound.points["criterion"] == "delta_norm") & (rewound.points["direction"] == "ascending")]
    expected = []
    for accuracy in table[curves_made.ACCURACY]:
        right = np.arange(20) < round(20 * accuracy)
        difference = right.astype(float) - (np.arange(20) < 18)
        expected.append(100 * difference.std(ddof=1) / np.sqrt(20))
    assert bars is not None
    assert list(bars) == pytest.approx(expected)
    assert bars[0] == 0
    over = lines(drawn("rewind_curve", rewound, errors="documents").panels[0])["delta norm ascending"].bars
    assert over is not None
    assert over[0] == pytest.approx(100 * np.sqrt(0.9 * 0.1 / 19))


def test_random_orders_are_a_mean_and_a_band_and_a_single_one_has_none(rewound: Results) -> None:
    line = lines(drawn("rewind_curve", rewound).panels[0])["random (mean of 2)"]
    assert line.band is not None
    assert line.bars is None
    assert "band: standard deviation over 2 orders" in drawn("rewind_curve", rewound).caption
    points = tuple(point for point in rewound.studies[0].points if point.varies["seed"] in (None, 0))
    alone = drawn("rewind_curve", Results(rewound.store, [rewound.studies[0].model_copy(update={"points": points})]))
    assert lines(alone.panels[0])["random"].band is None
    assert "a single random order, so no band" in alone.caption


def test_directions_differ_in_dashes_and_criteria_in_colour_and_marker(rewound: Results) -> None:
    found = lines(drawn("rewind_curve", rewound).panels[0])
    ascending, descending, random = (found[name].look for name in ("delta norm ascending", "delta norm descending", "random (mean of 2)"))
    assert (ascending.dash, ascending.filled, descending.dash, descending.filled) == ("solid", True, "dashed", False)
    assert ascending.colour == descending.colour != random.colour
    assert ascending.marker != random.marker


def test_failed_and_unfinished_points_are_gaps_with_a_count_and_a_missing_criterion_is_named(tmp_path: Path) -> None:
    store, study = curves_made.make(tmp_path)
    gone = ("delta_norm-descending 0.25", "delta_norm-descending 0.5", "delta_norm-descending 0.75", "delta_norm-ascending 0.5")
    specs = resolved(store, study.points)
    curves_made.finish(store, study.model_copy(update={"points": tuple(point for point in study.points if point.name not in gone)}))
    curves_made.fail(store, specs[gone[0]], "out of memory")
    drawing = drawn("rewind_curve", Results(store, [study]), criteria=["delta_norm", "greedy", "pl_ks"])
    assert np.isnan(lines(drawing.panels[0])["delta norm ascending"].y[2])
    assert "Gaps: 1 of 20 points failed, 3 of 20 points not finished." in drawing.caption
    assert "Without greedy, pl ks: no point of them is finished." in drawing.caption


def test_a_caption_has_protocol_sizes_and_the_hashes_of_the_checkpoints(rewound: Results) -> None:
    caption = drawn("rewind_curve", rewound).caption
    protocol = key(curves_made.PROTOCOL).rsplit("-", 1)[1][:8]
    assert f"Protocol tiny ({protocol}): 20 documents of tiny_math and 10 documents of tiny_text." in caption
    for checkpoint, name in ((curves_made.TUNED, "math"), (curves_made.BASE, "text")):
        assert f"{name} ({key(checkpoint).rsplit('-', 1)[1][:8]})" in caption


@pytest.mark.parametrize("name", ["rewind_curve", "auc_diff", "truncation", "interpolation", "transplantation", "trade_off", "math_share"])
def test_scores_of_two_protocols_are_refused_in_one_figure_by_name(name: str, tmp_path: Path) -> None:
    other = made.PROTOCOL.but(name="other", seed=1)
    asked = made.study([made.evaluation(MATH), made.truncated(MATH, 50), made.evaluation(MATH, protocol=other)])
    results = Results(made.finished(tmp_path, asked), [asked])
    with pytest.raises(ValueError, match=r"2 protocols, made_up \(\w{8}\), other \(\w{8}\)"):
        figures.build(name, results)


@pytest.mark.parametrize("name", ["rewind_curve", "auc_diff", "truncation", "interpolation", "transplantation", "trade_off", "math_share"])
def test_a_study_without_a_result_says_so(name: str, tmp_path: Path) -> None:
    asked = made.study([made.evaluation(MATH), made.truncated(MATH, 50)])
    with pytest.raises(ValueError, match="no point of this study is finished"):
        figures.build(name, Results(Store(tmp_path), [asked]))


@pytest.mark.parametrize(
    "name", ["truncation", "interpolation", "transplantation", "single_head", "head_map", "head_map_difference", "math_share"]
)
def test_a_study_that_lacks_what_a_figure_needs_is_told_what_that_is(name: str, tmp_path: Path) -> None:
    results = shown(tmp_path, made.evaluation(MATH))
    with pytest.raises(ValueError, match="it needs") as error:
        figures.build(name, results)
    assert figures.REGISTRY[name].NEEDS in str(error.value)


def test_a_setting_or_metric_that_is_not_there_gets_the_nearest(rewound: Results) -> None:
    with pytest.raises(KeyError, match="did you mean errors"):
        figures.build("rewind_curve", rewound, {"error": "paired"})
    with pytest.raises(KeyError, match="did you mean tiny_math/exact_match_strict"):
        figures.build("rewind_curve", rewound, {"metrics": ["tiny_math/exact_match"]})
    with pytest.raises(ValueError, match="allowed are paired and documents"):
        figures.build("rewind_curve", rewound, {"errors": "none"})
    with pytest.raises(KeyError, match="did you mean rewind_curve"):
        figures.build("rewind_curv", rewound)


def test_every_module_of_the_folder_is_in_the_registry_under_its_name() -> None:
    assert figure_names.names() == sorted(figures.REGISTRY)


def test_every_figure_says_what_it_shows_and_needs_and_its_defaults_are_read() -> None:
    for name, module in figures.REGISTRY.items():
        assert module.SHOWS, name
        assert module.NEEDS, name
        assert isinstance(figures.settings(name), dict)


# -------------------------------------------------------------------------------------------------------------- AUC-diff


def test_auc_diff_is_the_difference_of_the_areas_with_its_paired_error(rewound: Results) -> None:
    table = sheet("auc_diff", rewound)
    assert table.columns == ("criterion", "AUC ascending", "AUC descending", "AUC-diff", "from", "to")
    rows = dict(table.rows)
    right = {}
    for direction, bend in (("ascending", 2.0), ("descending", 0.5)):
        right[direction] = np.array(
            [np.arange(20) < round(20 * (0.9 - 0.8 * fraction**bend)) for fraction in curves_made.FRACTIONS], dtype=float
        )
    areas = {direction: np.trapezoid(of_documents, curves_made.FRACTIONS, axis=0) for direction, of_documents in right.items()}
    difference = areas["descending"] - areas["ascending"]
    ascending, descending, found, low, high = rows["delta norm"]
    assert (ascending.value, descending.value) == (
        pytest.approx(100 * areas["ascending"].mean()),
        pytest.approx(100 * areas["descending"].mean()),
    )
    assert found.value == pytest.approx(100 * abs(difference.mean()))
    assert found.error == pytest.approx(100 * difference.std(ddof=1) / np.sqrt(20))
    assert found.best
    sign = np.sign(difference.mean())
    assert (low.value, high.value) == pytest.approx([100 * end for end in bootstrap(sign * difference)])
    assert "percentile bootstrap over documents" in table.caption
    assert [cell.value for cell in rows["random"][2:]] == [None] * 3  # one direction only


def test_the_bootstrap_of_paired_areas_is_as_wide_as_their_paired_error_says_and_narrower_than_that_of_unpaired_ones() -> None:
    draw = np.random.default_rng(3)
    hard = draw.normal(0, 1, (5, 2000)).cumsum(axis=0)  # of a document, shared by both orders at every fraction
    ours, theirs = (np.trapezoid(hard + draw.normal(shift, 0.3, hard.shape), curves_made.FRACTIONS, axis=0) for shift in (0.1, 0.0))
    difference = ours - theirs
    low, high = bootstrap(difference)
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert (low + high) / 2 == pytest.approx(difference.mean(), abs=0.1 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert bootstrap(difference) == (low, high)
    unpaired = np.sqrt(ours.var(ddof=1) + theirs.var(ddof=1)) / np.sqrt(len(ours))
    assert high - low < 0.3 * 2 * 1.96 * unpaired


def test_a_curve_with_a_gap_has_no_area(tmp_path: Path) -> None:
    store, study = curves_made.make(tmp_path)
    points = tuple(point for point in study.points if point.name != "delta_norm-descending 0.5")
    curves_made.finish(store, study.model_copy(update={"points": points}))
    rows = dict(sheet("auc_diff", Results(store, [study])).rows)
    assert rows["delta norm"][1].value is None
    assert rows["delta norm"][2].value is None


# ------------------------------------------------------------------------------------------------------------------ maps


def test_single_heads_of_points_are_differences_to_the_unedited_model_with_paired_errors(tmp_path: Path) -> None:
    heads = [(0, 0), (0, 3), (1, 2)]
    specs = [made.rewound_alone(MATH, head) for head in heads]
    drawing = drawn("single_head", shown(tmp_path, made.evaluation(MATH), *specs))
    (heat,) = drawing.panels[0].marks
    assert isinstance(heat, Heat)
    for head, spec in zip(heads, specs, strict=True):
        assert heat.cells[head] == pytest.approx(100 * (mean(spec) - mean(made.evaluation(MATH))))
        assert heat.text[head[0]][head[1]] == f"± {100 * made.paired_error(spec, made.evaluation(MATH), made.SUMS):.2g}"
    assert np.isnan(heat.cells).sum() == 5
    assert "3 of 8 heads" in drawing.caption


def ranked(root: Path, *rankings: Ranking) -> Results:
    store = Store(root)
    for place, ranking in enumerate(rankings):
        scores = np.random.default_rng(place).normal(size=len(ranking.units))
        units = {"layer": [layer for layer, _ in ranking.units], ranking.unit: [str(part) for _, part in ranking.units]}
        order = [list(unit) for unit in ranking.units]
        curves_made.build(store, ranking, {"ranking.json": {"order": order}})
        pd.DataFrame({**units, "score": scores}).to_parquet(store.product(ranking) / "scores.parquet")
    points = tuple(Point(name=f"{place} {each.label()}", varies={}, config={}, spec=each) for place, each in enumerate(rankings))
    return Results(store, [Study(name="maps", question="Where are they?", points=points)])


def test_both_directions_share_one_map_with_a_cell_per_head_and_its_place_in_the_order(tmp_path: Path) -> None:
    order = curves_made.ranking("delta_norm", "ascending")
    found = figures.build(
        "head_map", ranked(tmp_path, order, order.but(direction="descending"), curves_made.ranking("random", "ascending", 0))
    )
    assert [each.name for each in found] == ["head_map_delta_norm"]  # a random order has no map worth a look
    (panel,) = found[0].panels  # type: ignore[union-attr]
    (heat,) = panel.marks
    assert isinstance(heat, Heat)
    expected = np.random.default_rng(1).normal(size=8).reshape(2, 4)
    assert (heat.cells == expected).all()
    assert (panel.x.label, panel.y.label, heat.columns) == ("Head", "Layer", ("0", "1", "2", "3"))
    assert heat.diverging
    first = tuple(int(place) for place in np.unravel_index(np.argmax(expected), expected.shape))
    assert heat.text[first[0]][first[1]] == "place 1 from the highest"


@pytest.mark.parametrize(("unit", "names", "label"), [("matrix", ("q", "o", "up"), "Role"), ("layer", ("",), "")])
def test_roles_stand_under_matrices_and_nothing_under_layers(unit: str, names: tuple[str, ...], label: str, tmp_path: Path) -> None:
    order = curves_made.ranking("delta_norm", "ascending").but(unit=unit, roles=("q", "o", "up"))
    (panel,) = drawn("head_map", ranked(tmp_path, order)).panels
    (heat,) = panel.marks
    assert isinstance(heat, Heat)
    assert (heat.columns, panel.x.label) == (names, label)


def test_maps_of_two_models_are_subtracted_on_one_scale(tmp_path: Path) -> None:
    one = curves_made.ranking("delta_norm", "ascending")
    other = one.but(roles=("q",))
    drawing = drawn("head_map_difference", ranked(tmp_path, one, other))
    first, second, difference = (panel.marks[0] for panel in drawing.panels)
    assert isinstance(first, Heat)
    assert isinstance(second, Heat)
    assert isinstance(difference, Heat)
    assert (difference.cells == second.cells - first.cells).all()
    assert first.limits == second.limits
    assert difference.diverging


# ---------------------------------------------------------------------------------------------------------------- tables


def test_the_table_of_mixtures_has_exact_budgets_and_stars(tmp_path: Path) -> None:
    base = made.pretrained()
    starred = replace_part(made.tuned(base, "half", math=100, text=220))
    results = shown(tmp_path, made.evaluation(starred), made.evaluation(MATH))
    table = sheet("mixtures", results)
    rows = {name: [cell.value for cell in cells] for name, cells in table.rows}
    assert table.columns == ("mixture", "text", "math", "all")
    assert rows == {"pre": ["320", None, "320"], "half": ["220", "100*", "320"], "math_320": [None, "320", "320"]}
    assert dict(table.groups) == {0: "Pre-training", 1: "CPT"}


def replace_part(checkpoint: Any) -> Any:
    first, *others = checkpoint.mixture.parts
    return checkpoint.but(mixture=checkpoint.mixture.but(parts=(first.but(oversample=True), *others)))


def test_the_table_of_hyper_parameters_has_a_column_per_model_and_stage(tmp_path: Path) -> None:
    table = sheet("hyper_parameters", shown(tmp_path, made.evaluation(MATH), made.evaluation(OTHER)))
    assert len(table.columns) == 3  # the runs that differ in their data alone share a column
    rows = {name: cells[0].value for name, cells in table.rows}
    assert (rows["hidden size"], rows["layers"], rows["peak learning rate"], rows["AdamW betas"]) == ("8", "2", "0.001", "0.9, 0.95")


def test_a_study_that_trains_nothing_has_no_tables_of_training(tmp_path: Path) -> None:
    given = HubCheckpoint(id="someone/model-1B", revision="tokens4001B", shape=curves_made.SHAPE)
    for name in ("mixtures", "hyper_parameters"):
        with pytest.raises(ValueError, match="trains nothing"):
            figures.build(name, shown(tmp_path, made.evaluation(given)))
