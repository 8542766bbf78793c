"""Errors of differences: every point against the model that nothing was done to, over the same documents."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.results import Results
from cpt_lab.evaluation.statistics import standard_error
from cpt_lab.specs import Evaluation, Mean, key

if TYPE_CHECKING:
    import pandas as pd

Documents = tuple[NDArray[Any], NDArray[np.float64]]  # names, outcomes
PAIRED = "paired standard error over documents, each counting the same, against the unedited model"
OVER_DOCUMENTS = "standard error over documents"


class Errors:
    """Of one metric: the paired standard error of each point's difference to its unedited model, which both must be finished for."""

    def __init__(self, results: Results, metric: str) -> None:
        self._results = results
        self.metric = metric
        self._parts = _parts(results, metric)

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
        """Outcomes by document; None where there are none."""
        found = self._results.outcomes(metric).of(of)
        return None if found is None else (found.index.to_numpy(), np.asarray(found, dtype=np.float64))


def _error(found: Sequence[Documents | None], weights: Sequence[float]) -> float:
    """Standard error of the mean over documents of the weighted sum; NaN for fewer than two documents."""
    there = [each for each in found if each is not None]
    if len(there) < len(found):
        return float("nan")
    first = there[0][0]
    if all(names is first or np.array_equal(names, first) for names, _ in there):
        chosen = [values for _, values in there]
    else:
        shared = reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), (names for names, _ in there))
        chosen = [values[np.isin(names, shared)] for names, values in there]
    if len(chosen[0]) < 2:
        return float("nan")
    sums = np.tensordot(np.asarray(weights, dtype=np.float64), np.stack(chosen), axes=1)
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
