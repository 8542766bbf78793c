"""How two criteria agree: limits, parity with scipy, and what cannot be said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cpt_lab.orderings.correlation import build_correlation, correlate, spearman
from cpt_lab.specs import Correlation, Ranking
from factory import workspace
from spec_cases import SHAPE

ONE = Ranking(criterion="delta_norm", direction="descending", shape=SHAPE)
OTHER = ONE.but(criterion="pl_alpha")
SPEC = Correlation(one=ONE, other=OTHER)


def built(one: list[float], other: list[float], folder: Path) -> tuple[dict[str, object], pd.DataFrame]:
    for name, scores in (("one", one), ("other", other)):
        (folder / name).mkdir(parents=True)
        frame = pd.DataFrame({"layer": [0, 0, 0, 0, 1, 1, 1, 1], "head": [0, 1, 2, 3] * 2, "score": scores})
        frame.to_parquet(folder / name / "scores.parquet")
    work = workspace(folder / "work")
    build_correlation(SPEC, folder / "one", folder / "other", work)
    return json.loads((work.product / "correlation.json").read_text()), pd.read_parquet(work.product / "table.parquet")


def test_scores_in_the_same_order_correlate_wholly_whatever_their_sizes(tmp_path: Path) -> None:
    facts, table = built([1, 2, 3, 4, 5, 6, 7, 8], [1, 4, 9, 16, 25, 36, 49, 1000], tmp_path)
    assert facts["spearman"] == pytest.approx(1)
    assert facts["p_value"] == pytest.approx(1 / 2001, rel=2)
    assert list(table.columns) == ["layer", "head", "one", "other"]


def test_units_that_one_criterion_does_not_score_are_left_out(tmp_path: Path) -> None:
    nan = float("nan")
    facts, table = built([1, 2, 3, 4, 5, nan, 7, 8], [8, 7, 6, 5, 4, 100, nan, 1], tmp_path)
    assert (facts["units"], len(table)) == (6, 8)
    assert facts["spearman"] == pytest.approx(-1)


def test_too_few_units_are_refused(tmp_path: Path) -> None:
    nan = float("nan")
    with pytest.raises(ValueError, match="both criteria score 3 units, and 4 are the fewest"):
        built([1, 2, 3, nan, nan, nan, nan, nan], [1, 2, 3, 4, 5, 6, 7, 8], tmp_path)


def test_a_side_that_does_not_tell_units_apart_has_no_correlation() -> None:
    assert correlate(np.ones(6), np.arange(6.0)) == {"spearman": None, "interval": None, "p_value": None}


def test_independent_scores_are_seldom_called_significant() -> None:
    generator = np.random.default_rng(0)
    found = [correlate(generator.normal(size=20), generator.normal(size=20))["p_value"] for _ in range(12)]
    assert sum(float(value) < 0.05 for value in found if isinstance(value, float)) <= 3


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=30))
def test_the_rank_correlation_is_that_of_scipy_ties_and_all(pairs: list[tuple[int, int]]) -> None:
    one, other = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    found = spearman(one, other)
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


def test_rankings_of_different_units_cannot_be_correlated() -> None:
    with pytest.raises(ValueError, match=r"ranks 8 units \(head\) and .* 2 \(layer\): give both the same unit"):
        Correlation(one=ONE, other=OTHER.but(unit="layer"))
