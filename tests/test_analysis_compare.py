"""Points side by side."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import made_up_study as made
from analysis.compare import compare, csv, markdown, text
from cpt_lab.store import Store
from cpt_lab.study import Point, resolved

ASCENDING, DESCENDING = "delta_norm-ascending 0.5", "delta_norm-descending 0.5"


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Store, dict[str, Point]]:
    store, study = made.make(tmp_path, fractions=(0.0, 0.5))
    made.finish(store, study)
    return store, {point.name: point for point in study.points}


def test_only_what_differs_is_shown_and_it_comes_first(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    table = compare(store, [points[ASCENDING], points[DESCENDING]])
    assert list(table.loc["setting"].index) == ["direction"]
    assert list(table.loc[("setting", "direction")]) == ["ascending", "descending"]
    assert table.index[0] == ("setting", "direction")


def test_a_setting_that_no_sweep_named_is_found_in_the_specs(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    spec = points[ASCENDING].spec
    assert isinstance(spec, made.Evaluation)
    reseeded = made.Evaluation(checkpoint=spec.checkpoint, protocol=made.PROTOCOL.but(seed=7))
    other = points[ASCENDING].model_copy(update={"name": "reseeded", "spec": reseeded})
    table = compare(store, [points[ASCENDING], other])
    assert list(table.loc[("setting", "protocol.seed")]) == [0, 7]


def test_the_difference_is_paired_over_the_same_documents(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    table = compare(store, [points[ASCENDING], points[DESCENDING]])
    right = [np.arange(20) < round(accuracy * 20) for accuracy in (0.7, 0.9 - 0.8 * 0.5**0.5)]
    differences = right[1].astype(float) - right[0].astype(float)
    assert table.loc[("difference", made.ACCURACY), DESCENDING] == pytest.approx(differences.mean())
    expected = math.sqrt(((differences - differences.mean()) ** 2).sum() / 19 / 20)
    assert table.loc[("difference stderr", made.ACCURACY), DESCENDING] == pytest.approx(expected)
    assert table.loc[("difference n", made.ACCURACY), DESCENDING] == 20
    assert table.loc[("difference n", made.BITS), DESCENDING] == 10


def test_points_of_the_same_weights_differ_by_exactly_nothing(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    table = compare(store, [points["delta_norm-ascending 0"], points["random-ascending-seed1 0"]])
    assert list(table.loc[("difference", made.ACCURACY)]) == [None, 0.0]
    assert list(table.loc[("difference stderr", made.ACCURACY)]) == [None, 0.0]


def test_only_documents_that_both_points_have_are_paired(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    samples = store.product(resolved(store, [points[DESCENDING]])[DESCENDING]) / "samples.parquet"
    pd.read_parquet(samples).iloc[5:].to_parquet(samples)
    table = compare(store, [points[ASCENDING], points[DESCENDING]])
    assert table.loc[("difference n", made.ACCURACY), DESCENDING] == 15


def test_an_unfinished_point_has_dashes(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.5,))
    made.finish(store, study.model_copy(update={"points": study.points[:1]}))
    lines = text(compare(store, list(study.points[:2]))).splitlines()
    line = next(line for line in lines if line.startswith(f"{made.ACCURACY} "))
    assert line.split()[1:] == ["0.7000", "±", "0.1051", "-"]


def test_the_csv_gives_every_number_in_full(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    table = compare(store, [points[ASCENDING], points[DESCENDING]])
    read = pd.read_csv(io.StringIO(csv(table)), index_col=[0, 1])
    assert float(read.loc[("metric", made.BITS), ASCENDING]) == table.loc[("metric", made.BITS), ASCENDING]


def test_markdown_has_a_row_per_line_of_the_text(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    table = compare(store, [points[ASCENDING], points[DESCENDING]])
    lines = markdown(table).splitlines()
    assert len(lines) == len(text(table).splitlines()) + 1
    assert all(line.count("|") == 4 for line in lines)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_points_are_refused(finished: tuple[Store, dict[str, Point]], count: int) -> None:
    store, points = finished
    with pytest.raises(ValueError, match="at least two points"):
        compare(store, list(points.values())[:count])


def test_points_none_of_which_is_finished_are_refused(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.5,))
    with pytest.raises(ValueError, match="none of the points"):
        compare(store, list(study.points))


def test_documents_beyond_the_floats_are_left_out_of_the_difference(finished: tuple[Store, dict[str, Point]]) -> None:
    store, points = finished
    samples = store.product(resolved(store, [points[DESCENDING]])[DESCENDING]) / "samples.parquet"
    table = pd.read_parquet(samples)
    table.loc[table["task"] == "tiny_text", "bits_per_byte"] = [math.inf, *[1.0] * 9]
    table.to_parquet(samples)
    assert compare(store, [points[ASCENDING], points[DESCENDING]]).loc[("difference n", made.BITS), DESCENDING] == 9


def test_points_too_many_for_the_terminal_stand_one_below_the_other(tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    made.finish(store, study)
    table = compare(store, list(study.points))
    lines = text(table).splitlines()
    assert max(map(len, lines)) <= 120
    start = lines.index(made.ACCURACY)
    assert [line.split("  ")[1] for line in lines[start + 1 : start + 1 + len(study.points)]] == [point.name for point in study.points]
