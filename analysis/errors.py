"""Errors of differences: every point against the model that nothing was done to, over the same documents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.paired import NOT_PAIRED
from analysis.results import Results
from cpt_lab.evaluation.statistics import standard_error
from cpt_lab.specs import Evaluation, Mean, key

if TYPE_CHECKING:
    import pandas as pd

Documents = tuple[NDArray[np.object_], NDArray[np.float64]]  # names, outcomes
PAIRED = "paired standard error over documents against the unedited model"
OVER_DOCUMENTS = "standard error over documents"


class Errors:
    """Of one metric: the paired standard error of each point's difference to its unedited model, which both must be finished for."""

    def __init__(self, results: Results, metric: str) -> None:
        self._results = results
        self.metric = metric
        self._parts = _parts(results, metric)
        self._known: dict[tuple[str, str], Documents | None] = {}

    def of(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """One per row of `results.points`; 0 for the unedited model itself, NaN where one of the two, or of their documents, is missing."""
        pairs = zip(table["key"], table["unedited"], strict=True)
        return np.array([self.between(str(ours), str(theirs)) for ours, theirs in pairs], dtype=np.float64)

    def between(self, ours: str, theirs: str) -> float:
        """Of the difference of two evaluations, by their keys."""
        return 0.0 if ours == theirs else self.combined((ours, theirs), (1.0, -1.0))

    def combined(self, keys: Sequence[str], weights: Sequence[float]) -> float:
        """Of sum w_i x_i over the documents that all have; sqrt(sum se_t^2) / T of a mean over T tasks, whose documents differ."""
        errors = [_error([self._documents(name, part) for name in keys], weights) for part in self._parts]
        return float(np.sqrt(np.sum(np.square(errors))) / len(errors))

    def _documents(self, of: str, metric: str) -> Documents | None:
        """Outcomes by document, the mean of several answers to one; None where there are none."""
        place = (of, metric)
        if place not in self._known:
            self._known[place] = self._read(of, metric)
        return self._known[place]

    def _read(self, of: str, metric: str) -> Documents | None:
        task, _, column = metric.partition("/")
        if metric.endswith(NOT_PAIRED) or not self._results.has(of):
            return None
        found = self._results.outcomes(of, task, column)
        if found is None:
            return None
        names, values = found
        known = np.isfinite(values)
        names, values = names[known], values[known]
        unique, where, counts = np.unique(names, return_inverse=True, return_counts=True)
        return (unique, np.bincount(where, values) / counts) if len(unique) else None


def _error(found: Sequence[Documents | None], weights: Sequence[float]) -> float:
    """Standard error of the mean over documents of the weighted sum; NaN for fewer than two documents."""
    there = [each for each in found if each is not None]
    if len(there) < len(found):
        return float("nan")
    shared = reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), (names for names, _ in there))
    if len(shared) < 2:
        return float("nan")
    sums = sum(weight * values[np.isin(names, shared)] for weight, (names, values) in zip(weights, there, strict=True))
    return standard_error(sums) or 0.0


def _parts(results: Results, metric: str) -> tuple[str, ...]:
    """The metrics whose mean this one is, or itself."""
    protocols = {
        key(point.spec.protocol): point.spec.protocol
        for study in results.studies
        for point in study.points
        if isinstance(point.spec, Evaluation)
    }
    means: dict[str, Mean] = {mean.full_name: mean for protocol in protocols.values() for mean in protocol.means}
    return tuple(means[metric].of) if metric in means else (metric,)
