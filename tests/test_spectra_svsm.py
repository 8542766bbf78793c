"""Scaling of singular values: known factors, plain loops, and the values that are left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_lab.spectra import MEASURES
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.svsm import Spectra, scalings
from spectra_cases import random, spectrum, with_values


def measured(tuned: torch.Tensor, base: torch.Tensor) -> tuple[float, float]:
    found = FAMILIES["svsm"].columns(Spectra(spectrum(tuned), spectrum(base)), MEASURES["svsm"])
    return float(found["svsm_mean"]), float(found["svsm_std"])


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 15), columns=st.integers(1, 15))
def test_mean_and_deviation_equal_plain_loops_over_the_largest_ninety_percent(seed: int, rows: int, columns: int) -> None:
    tuned, base = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    values = [np.linalg.svd(matrix.numpy(), compute_uv=False) for matrix in (tuned, base)]
    factors = [float(one / other) for one, other in zip(*values, strict=True)][: math.ceil(0.9 * min(rows, columns))]
    average = sum(factors) / len(factors)
    deviation = math.sqrt(sum((factor - average) ** 2 for factor in factors) / len(factors))
    assert measured(tuned, base) == pytest.approx((average, deviation), rel=1e-9, abs=1e-12)


def test_one_factor_for_all_is_found_and_does_not_deviate() -> None:
    base = random(30, 20)
    assert measured(1.4 * base, base) == pytest.approx((1.4, 0), abs=1e-12)


def test_the_smallest_tenth_does_not_count() -> None:
    values = torch.linspace(2, 1, 20, dtype=torch.float64)
    tuned = torch.cat([0.9 * values[:18], 0.1 * values[18:]])
    assert measured(with_values(tuned, 30), with_values(values, 30)) == pytest.approx((0.9, 0), abs=1e-9)


def test_values_of_the_base_that_are_rounding_have_no_factor() -> None:
    low, zero = with_values(torch.tensor([3.0, 2, 0, 0]).double(), 20), torch.zeros(20, 4, dtype=torch.float64)
    assert scalings(Spectra(spectrum(2 * low), spectrum(low))).factors.tolist() == pytest.approx([2, 2, math.nan, math.nan], nan_ok=True)
    assert all(math.isnan(value) for value in measured(low, zero))
    assert measured(zero, low) == (0, 0)
