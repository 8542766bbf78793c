"""Means, standard errors and areas of scores, as functions of plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Difference(NamedTuple):
    """A mean difference, its standard error (None for a single pair) and the number of pairs."""

    mean: float
    stderr: float | None
    n: int


def mean(values: ArrayLike) -> float:
    """The mean of the values, 1/n sum x_i; ValueError if there are none."""
    return float(np.mean(_vector(values, "values")))


def standard_error(values: ArrayLike) -> float | None:
    """The standard error of the mean, s / sqrt(n) with s^2 = 1/(n-1) sum (x_i - mean)^2; None for one value, which has no spread."""
    vector = _vector(values, "values")
    if len(vector) < 2:
        return None
    return float(np.std(vector, ddof=1) / np.sqrt(len(vector)))


def paired_difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of `first - second` over the same documents, in the same order, and its standard error.

    What both scores share (documents hard for every model) cancels: the error is that of the mean of d_i = a_i - b_i, usually far below
    sqrt(se_a^2 + se_b^2). ValueError if the two have different lengths.
    """
    left, right = _vector(first, "first"), _vector(second, "second")
    if len(left) != len(right):
        raise ValueError(f"{len(left)} and {len(right)} values cannot be paired: give the scores of the same documents in the same order")
    differences = left - right
    return Difference(mean(differences), standard_error(differences), len(differences))


def auc(fractions: Sequence[float], values: ArrayLike) -> float:
    """The area under a curve of scores by the trapezoid rule (P eq. 17), sum 1/2 (y_i + y_i+1) (x_i+1 - x_i).

    `fractions` of rewound units in [0, 1], in any order, each once: the area is in units of the score.
    """
    x, y = _curve(fractions, values)
    return float(np.sum((y[1:] + y[:-1]) * np.diff(x)) / 2)


def auc_difference(fractions: Sequence[float], descending: ArrayLike, ascending: ArrayLike) -> float:
    """How much the direction of a ranking matters: |AUC of the descending curve - AUC of the ascending one| (P eq. 18)."""
    return abs(auc(fractions, descending) - auc(fractions, ascending))


def _curve(fractions: Sequence[float], values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points of a curve sorted by fraction."""
    x, y = _vector(fractions, "fractions"), _vector(values, "values")
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"{len(x)} fractions and {len(y)} values are no curve: give one value for each of at least two fractions")
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"fractions from {x.min():g} to {x.max():g} are not fractions: give numbers from 0 to 1 (percentages / 100)")
    order = np.argsort(x)
    x, y = x[order], y[order]
    if np.any(np.diff(x) == 0):
        raise ValueError(f"fraction {x[:-1][np.diff(x) == 0][0]:g} stands twice: average its values first")
    return x, y


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """The values as a vector of doubles; ValueError if it is empty, of more axes, or holds a NaN."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not len(vector):
        raise ValueError(f"{name} have the shape {vector.shape}: give a list of at least one number")
    if np.isnan(vector).any():
        raise ValueError(f"{name} hold {int(np.isnan(vector).sum())} NaN among {len(vector)}: leave out documents that were not scored")
    return vector
