"""Tables, curves, the summary and the figure of a rewind study."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import made_up_study as made
from analysis import captions, metrics, summary
from analysis.curves import Curve, curves, references
from analysis.results import frame, gaps, is_share, metric_names, rewound_units
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Study]:
    store, study = made.make(tmp_path_factory.mktemp("finished"))
    made.finish(store, study)
    return store, study


@pytest.fixture(scope="module")
def results(finished: tuple[Store, Study]) -> pd.DataFrame:
    return frame(*finished)


@pytest.fixture(scope="module")
def with_gaps(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """One descending point failed, another not yet done; no other seed or direction shares their results."""
    store, study = made.make(tmp_path_factory.mktemp("gaps"))
    specs = resolved(store, study.points)
    left_out = ("delta_norm-descending 0.5", "delta_norm-ascending 0.25")
    made.finish(store, study.model_copy(update={"points": tuple(item for item in study.points if item.name not in left_out)}))
    made.fail(store, specs[left_out[0]], "out of memory")
    return frame(store, study)


def curve(values: list[list[float]], fractions: tuple[float, ...] = (0.0, 0.5, 1.0)) -> Curve:
    return Curve("random", "ascending", fractions, np.array(values), np.zeros((len(values), len(fractions))))


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_has_a_row_per_point_with_its_choices_scores_and_errors(results: pd.DataFrame) -> None:
    assert len(results) == 20
    row = results[results["name"] == "delta_norm-ascending 0.5"].iloc[0]
    assert (row["criterion"], row["direction"], row["fraction"], row["state"]) == ("delta_norm", "ascending", 0.5, "done")
    assert row[made.ACCURACY] == 0.7
    assert row[f"{made.ACCURACY}__stderr"] == pytest.approx(math.sqrt(0.7 * 0.3 / 19))
    assert math.isnan(row[f"{made.BITS}__stderr"])


def test_the_table_knows_what_it_is_about(results: pd.DataFrame) -> None:
    assert results.attrs["n"] == {made.ACCURACY: 20, made.BITS: 10}
    assert (results.attrs["protocol"], results.attrs["question"]) == ("tiny", "Does it work?")
    assert metric_names(results) == [made.ACCURACY, made.BITS]
    assert (is_share(results, made.ACCURACY), is_share(results, made.BITS)) == (True, False)


def test_points_that_share_weights_share_their_result(results: pd.DataFrame) -> None:
    assert results[results["fraction"] == 0]["key"].nunique() == 1
    assert results[results["fraction"] == 1]["key"].nunique() == 1


def test_an_unfinished_point_has_its_state_and_no_scores(with_gaps: pd.DataFrame) -> None:
    failed = with_gaps[with_gaps["name"] == "delta_norm-descending 0.5"].iloc[0]
    assert (failed["state"], failed["message"]) == ("failed", "out of memory")
    assert math.isnan(failed[made.ACCURACY])
    assert gaps(with_gaps) == "1 of 20 points failed, 1 of 20 points not finished"


def test_a_study_of_one_order_still_has_criterion_and_direction(finished: tuple[Store, Study]) -> None:
    store, study = finished
    points = tuple(item.model_copy(update={"varies": {"fraction": item.varies["fraction"]}}) for item in study.points[:5])
    table = frame(store, study.model_copy(update={"points": points}))
    assert set(table["criterion"]) == {"delta_norm"}
    assert set(table["direction"]) == {"ascending"}


def test_a_study_without_a_finished_point_has_nothing_to_show(tmp_path: Path) -> None:
    table = frame(*made.make(tmp_path, fractions=(0.5,)))
    with pytest.raises(ValueError, match="nothing to show yet"):
        metric_names(table)


@pytest.mark.slow
def test_the_table_needs_neither_torch_nor_mlflow(finished: tuple[Store, Study]) -> None:
    store, study = finished
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from analysis import compare, results, summary
from cpt_lab.store import Store
from cpt_lab.study import load
store = Store(Path({str(store.root)!r}))
table = results.frame(store, load(store, {study.name!r}))
summary.text(table)
print(len(table), [name for name in ("torch", "mlflow", "transformers", "lm_eval") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "20 []\n"


# -------------------------------------------------------------------------------------------------------------- curves


def test_there_is_a_curve_per_criterion_and_direction_and_seeds_are_its_rows(results: pd.DataFrame) -> None:
    found = [(item.criterion, item.direction, item.values.shape) for item in curves(results, made.ACCURACY)]
    assert found == [("delta_norm", "ascending", (1, 5)), ("delta_norm", "descending", (1, 5)), ("random", "ascending", (2, 5))]


def test_a_curve_without_its_own_ends_takes_them_from_the_others(results: pd.DataFrame) -> None:
    lacking = results[~((results["criterion"] != "delta_norm") & results["fraction"].isin([0.0, 1.0]))]
    lacking.attrs = results.attrs
    for item in curves(lacking, made.ACCURACY):
        assert item.fractions == made.FRACTIONS
        assert item.values[:, [0, -1]].tolist() == [[0.9, 0.1]] * len(item.values)


def test_an_unfinished_point_is_a_gap(with_gaps: pd.DataFrame) -> None:
    found = {item.direction: item for item in curves(with_gaps, made.ACCURACY) if item.criterion == "delta_norm"}
    assert np.isnan(found["descending"].mean).tolist() == [False, False, True, False, False]
    assert np.isnan(found["descending"].areas()).all()


def test_mean_and_spread_leave_out_seeds_that_are_not_done() -> None:
    item = curve([[1.0, 0.2, 0.0], [1.0, 0.6, 0.0], [1.0, math.nan, math.nan]])
    assert item.mean == pytest.approx([1.0, 0.4, 0.0])
    assert item.spread == pytest.approx([0.0, math.sqrt(0.08), 0.0])


def test_one_seed_has_no_spread() -> None:
    assert np.isnan(curve([[1.0, 0.5, 0.0]]).spread).all()


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_area_under_a_straight_line_is_the_mean_of_its_ends(start: float, end: float) -> None:
    assert curve([[start, (start + end) / 2, end]]).areas() == pytest.approx([(start + end) / 2])


def test_the_tuned_model_and_points_that_rewind_nothing_are_reference_lines(finished: tuple[Store, Study]) -> None:
    store, study = finished
    plain = Point(name="base", varies={}, config={}, spec=made.Evaluation(checkpoint=made.BASE, protocol=made.PROTOCOL))
    if not store.is_done(plain.spec):
        made.score(store, plain.spec, 0.05)
    table = frame(store, study.model_copy(update={"points": (*study.points, plain)}))
    assert references(table, made.ACCURACY) == {"base": 0.05, "nothing rewound": 0.9}
    assert len(curves(table, made.ACCURACY)) == 3


def test_what_else_a_sweep_varies_is_a_curve_of_its_own_and_other_seeds_are_repeats(results: pd.DataFrame) -> None:
    copies = [results.assign(kv=kv, **{"training.seed": seed}) for kv in ("never", "with_first") for seed in (0, 1)]
    table = pd.concat(copies, ignore_index=True)
    table.attrs = {**results.attrs, "varies": [*results.attrs["varies"], "kv", "training.seed"]}
    found = {(item.label, len(item.values)) for item in curves(table, made.ACCURACY)}
    assert len(found) == 6
    assert ("delta norm descending, kv=never (mean of 2)", 2) in found
    assert ("random, kv=with_first (mean of 4)", 4) in found


def test_studies_drawn_together_keep_each_its_own_curves(results: pd.DataFrame) -> None:
    worse = results.assign(study="later", **{made.ACCURACY: results[made.ACCURACY] / 2})
    table = pd.concat([results.assign(study="earlier"), worse], ignore_index=True)
    table.attrs = results.attrs
    apart = {item.label: item.mean for item in curves(table, made.ACCURACY)}
    for alone in curves(results, made.ACCURACY):
        words = alone.label.removesuffix(f" (mean of {len(alone.values)})")
        before, after = (
            next(mean for label, mean in apart.items() if label.startswith(f"{words}, study={name}")) for name in ("earlier", "later")
        )
        assert before == pytest.approx(alone.mean)
        assert after == pytest.approx(alone.mean / 2)


def test_points_that_rewind_nothing_add_nothing_to_the_curves_names(results: pd.DataFrame) -> None:
    soups = results.head(3).assign(name="a soup", key="other", weight=[0.1, 0.5, 0.9], intervention="soup")
    table = pd.concat([results, soups.assign(criterion=None, direction=None, fraction=None)], ignore_index=True)
    table.attrs = {**results.attrs, "varies": [*results.attrs["varies"], "weight"]}
    assert [item.label for item in curves(table, made.ACCURACY)] == [item.label for item in curves(results, made.ACCURACY)]
    assert references(table, made.ACCURACY) == {"nothing rewound": 0.9}


def test_unedited_points_of_another_model_are_no_reference_lines(results: pd.DataFrame) -> None:
    other = results.head(2).assign(criterion=None, fraction=None, intervention="none", role=["base", "tuned"], tuned="t", key=["b", "c"])
    table = pd.concat([results, other.assign(pretrain_tokens=999, name=["one", "two"])], ignore_index=True)
    table.attrs = results.attrs
    assert references(table, made.ACCURACY) == {"nothing rewound": 0.9}


def test_a_study_that_rewinds_nothing_has_no_curve_and_a_summary_of_its_points(results: pd.DataFrame) -> None:
    table = results.assign(fraction=None)
    table.attrs = results.attrs
    assert "0.9000 ± 0.0688" in summary.text(table, width=200)
    with pytest.raises(ValueError, match="no points that rewind"):
        curves(table, made.ACCURACY)


# ------------------------------------------------------------------------------------------------------------- summary


def test_the_summary_has_the_areas_and_their_difference_in_points(results: pd.DataFrame) -> None:
    (line,) = (line for line in summary.text(results).splitlines() if "delta norm asc." in line)
    ascending = [round((0.9 - 0.8 * fraction**2) * 20) / 20 for fraction in made.FRACTIONS]
    descending = [round((0.9 - 0.8 * fraction**0.5) * 20) / 20 for fraction in made.FRACTIONS]
    areas = [25 * (sum(values) - (values[0] + values[-1]) / 2) for values in (ascending, descending)]
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", line)]
    expected = [*(100 * value for value in ascending), areas[0], areas[0] - areas[1]]
    assert numbers == pytest.approx(expected, abs=0.0501)  # one digit is shown


def test_the_summary_names_what_is_missing(with_gaps: pd.DataFrame) -> None:
    text = summary.text(with_gaps)
    assert "1 of 20 points failed" in text
    row = next(line for line in text.splitlines() if "delta norm desc." in line)
    assert row.split()[3:] == ["90.0", "50.0", "-", "20.0", "10.0", "-", "-"]


def test_the_summary_of_seven_fractions_fits_a_terminal_of_80_columns(results: pd.DataFrame) -> None:
    inner = sorted(set(results["fraction"]) - {0.0, 1.0})[:2]
    more = results[results["fraction"].isin(inner)]
    wide = pd.concat([results, more.assign(fraction=more["fraction"] * 0.9)], ignore_index=True)
    wide.attrs = results.attrs
    text = summary.text(wide, width=80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


# ----------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(("unit", "plural"), [("head", "heads"), ("layer", "layers"), ("matrix", "matrices")])
def test_axes_and_tables_say_what_is_rewound(unit: str, plural: str, tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    order = made.ranking("random", "ascending", 0).but(unit=unit)
    whole = Study(name="whole", points=tuple(made.point(order, fraction) for fraction in (0, 1)))  # settled without the order
    made.finish(store, whole)
    table = frame(store, whole)
    assert metrics.fraction_axis(table).text == f"{plural.capitalize()} rewound to the base [%]"
    assert f"against the {plural} rewound [%]" in summary.text(table)
    mixed = frame(store, study.model_copy(update={"points": (*whole.points, study.points[0])}))
    assert rewound_units(mixed) == ("heads" if unit == "head" else "units")


def test_where_points_that_rewind_nothing_differ_there_is_no_line_for_them(results: pd.DataFrame) -> None:
    other = results.assign(key="another checkpoint", percent=50)
    both = pd.concat([results, other], ignore_index=True)
    both.attrs = results.attrs
    assert references(both, made.ACCURACY) == {}


def test_beside_the_main_metric_stands_that_of_the_text_if_there_is_one(results: pd.DataFrame) -> None:
    assert metrics.panels(results) == [made.ACCURACY, made.BITS]
    table = results.drop(columns=[made.BITS, f"{made.BITS}__stderr"])
    table.attrs = {**results.attrs, "n": {made.ACCURACY: 20}}
    assert metrics.panels(table) == [made.ACCURACY]
    with pytest.raises(ValueError, match="one task only"):
        metrics.pair(table, None, None)


def test_a_part_of_the_items_is_said_with_their_number(results: pd.DataFrame) -> None:
    table = results.copy()
    table.attrs = {**results.attrs, "part": {made.ACCURACY: "seeded 20 of 1,319"}}
    assert captions.size(table, made.ACCURACY) == "20 documents of tiny_math (seeded 20 of 1,319)"
