"""Outcomes of two models on the same documents: differences, exact tests, and Holm's correction for many of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from cpt_lab.evaluation.statistics import paired_difference

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

LEVEL = 0.05  # below this, a corrected p-value is called more than noise
DRAWS = 2000  # of a bootstrap: the ends of a 95 % interval then vary by about 2 % of its width
NOT_PAIRED = ("word_perplexity", "byte_perplexity")  # a document's own can be astronomical: bits_per_byte is their logarithm


class Test(NamedTuple):
    """A mean difference over documents, its paired standard error, the number of documents and the two-sided p-value."""

    mean: float
    stderr: float | None
    n: int
    p: float


class Outcomes:
    """What every document of one metric's task gave at each point, read once."""

    def __init__(self, results: Results, metric: str) -> None:
        self._results = results
        self.metric = metric
        self.task, _, self._column = metric.partition("/")
        self._read: dict[str, pd.Series[float] | None] = {}

    def of(self, key: str) -> pd.Series[float] | None:
        """By document; None where the point is not finished or its metric is no mean over documents."""
        if key not in self._read:
            self._read[key] = self._load(key)
        return self._read[key]

    def _load(self, key: str) -> pd.Series[float] | None:
        """The mean of a document's answers, if several were given; what is not finite is left out."""
        import pandas as pd

        if not self._results.has(key) or self.metric.endswith(NOT_PAIRED):
            return None
        scored = self._results.scored(key, self.task, self._column)
        if scored is None:
            return None
        documents, where, counts = np.unique(scored[0], return_inverse=True, return_counts=True)
        with np.errstate(invalid="ignore"):  # inf - inf, of answers that are left out
            means = np.bincount(where, scored[1], minlength=len(documents)) / counts
        known = np.isfinite(means)
        return pd.Series(means[known], index=pd.Index(documents[known], name="document")) if known.any() else None


def test(ours: pd.Series[float] | None, theirs: pd.Series[float] | None) -> Test | None:
    """Ours minus theirs over the documents that both have; None where there are none.

    Right or wrong: McNemar's exact test, binomial on the documents that only one got right. Other scores: the paired t-test.
    """
    if ours is None or theirs is None:
        return None
    shared = ours.index.intersection(theirs.index)
    if shared.empty:
        return None
    left, right = (np.asarray(each.loc[shared], float) for each in (ours, theirs))
    found = paired_difference(left, right)
    return Test(found.mean, found.stderr, found.n, p_value(left, right))


def p_value(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Two-sided, of no difference; 1 where nothing differs, nan for a single pair that does."""
    left, right = np.asarray(ours, float), np.asarray(theirs, float)
    differences = left - right
    if not differences.any():
        return 1.0
    if np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all():
        from scipy.special import bdtr

        won, lost = int((differences > 0).sum()), int((differences < 0).sum())
        return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))
    return one_sample(differences)


def one_sample(values: ArrayLike) -> float:
    """Two-sided p of a mean of zero by the t-test; 0 where all are the same and not zero."""
    from scipy.special import stdtr  # scipy.stats takes a second to import

    differences = np.asarray(values, float)
    n = len(differences)
    if n < 2:
        return float("nan")
    error = float(differences.std(ddof=1) / np.sqrt(n))
    if error == 0:
        return 1.0 if differences[0] == 0 else 0.0
    return float(2 * stdtr(n - 1, -abs(differences.mean()) / error))


def bootstrap(values: ArrayLike) -> tuple[float, float]:
    """Percentile interval of the mean at LEVEL, over DRAWS of as many values with replacement; the same values give the same interval."""
    given = np.asarray(values, float)
    draw = np.random.default_rng(0)
    means = [given[draw.integers(0, len(given), len(given))].mean() for _ in range(DRAWS)]
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down: p_(i) becomes max over j <= i of min(1, (m - j + 1) p_(j)); nan stays nan and is not counted."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p == p)
    corrected = [float("nan")] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[place] = highest
    return corrected
