"""Means, errors and areas against closed forms."""

from __future__ import annotations

import math
import statistics as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cpt_lab.evaluation.statistics import auc, auc_difference, mean, paired_difference, standard_error

numbers = st.floats(-1e3, 1e3, allow_nan=False)
curves = st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True).flatmap(
    lambda points: st.tuples(st.just([point / 1000 for point in points]), arrays(float, len(points), elements=numbers))
)


@given(st.lists(numbers, min_size=2, max_size=30))
def test_mean_and_standard_error_are_those_of_the_standard_library(values: list[float]) -> None:
    assert mean(values) == pytest.approx(standard.fmean(values), abs=1e-9)
    assert standard_error(values) == pytest.approx(standard.stdev(values) / math.sqrt(len(values)), rel=1e-6, abs=1e-9)


def test_the_standard_error_of_an_accuracy_is_that_of_a_proportion() -> None:
    right = [1.0] * 30 + [0.0] * 70
    assert standard_error(right) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_one_value_has_no_standard_error() -> None:
    assert standard_error([0.5]) is None
    assert paired_difference([1.0], [0.0]) == (1.0, None, 1)


def test_what_both_scores_share_cancels_in_a_paired_difference() -> None:
    hard = np.random.default_rng(0).normal(size=200)
    difference = paired_difference(hard + 0.25, hard)
    assert difference.mean == pytest.approx(0.25)
    assert difference.stderr == pytest.approx(0.0, abs=1e-12)
    assert difference.n == 200


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20))
def test_a_paired_difference_changes_its_sign_with_the_order(pairs: list[tuple[float, float]]) -> None:
    left, right = zip(*pairs, strict=True)
    one, other = paired_difference(left, right), paired_difference(right, left)
    assert one.mean == -other.mean
    assert one.stderr == other.stderr


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 values cannot be paired"):
        paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize("values", [[], [[1.0]], [1.0, math.nan]])
def test_what_is_no_list_of_numbers_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"values (have|hold)"):
        mean(values)


@given(numbers, st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True))
def test_the_area_under_a_constant_is_its_width_times_its_height(height: float, points: list[int]) -> None:
    fractions = [point / 1000 for point in points]
    assert auc(fractions, [height] * len(points)) == pytest.approx(height * (max(fractions) - min(fractions)), abs=1e-9)


@given(curves)
def test_the_area_is_numpys_trapezoid_of_the_sorted_curve(curve: tuple[list[float], np.ndarray]) -> None:
    fractions, values = curve
    order = np.argsort(fractions)
    assert auc(fractions, values) == pytest.approx(np.trapezoid(values[order], np.array(fractions)[order]), abs=1e-9)


def test_the_area_under_a_straight_line_from_one_to_zero_is_a_half() -> None:
    assert auc([0, 0.125, 0.5, 1], [1, 0.875, 0.5, 0]) == pytest.approx(0.5)


def test_the_difference_of_two_directions_is_never_negative() -> None:
    high, low = [0.9, 0.9, 0.1], [0.9, 0.3, 0.1]
    assert auc_difference([0, 0.5, 1], high, low) == auc_difference([0, 0.5, 1], low, high) == pytest.approx(0.3)


def test_a_percentage_is_no_fraction() -> None:
    with pytest.raises(ValueError, match="fractions from 0 to 100"):
        auc([0, 50, 100], [1, 1, 1])


def test_a_fraction_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction 0\.5 stands twice"):
        auc([0, 0.5, 0.5, 1], [1, 1, 1, 1])


def test_a_single_point_has_no_area() -> None:
    with pytest.raises(ValueError, match="no curve"):
        auc([0.5], [1.0])
