"""Power-law fits: parity with plain loops, the exponents of known samples, and what cannot be fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_lab.spectra.fits import power_law
from cpt_lab.spectra.measures import MEASURES, spectrum


def by_loops(values: list[float], min_tail: int) -> tuple[float, float, float, int]:
    """(alpha, KS, x_min, tail) of Clauset et al., one cut-off and one value after another."""
    best = (math.nan, math.inf, math.nan, 0)
    for x_min in sorted(set(values)):
        tail = sorted(value for value in values if value >= x_min)
        logs = sum(math.log(value / x_min) for value in tail)
        if len(tail) < min_tail or logs <= 0:
            continue
        alpha = 1 + len(tail) / logs
        fitted = [1 - (value / x_min) ** (1 - alpha) for value in tail]
        distance = max(abs(fit - place / len(tail)) for place, fit in enumerate(fitted))
        if distance < best[1]:
            best = (alpha, distance, x_min, len(tail))
    return best


def pareto(count: int, alpha: float, seed: int) -> np.ndarray:
    """A sample of a density x^-alpha from 1 on, by inversion, descending."""
    uniform = np.random.default_rng(seed).random(count)
    return np.sort((1 - uniform) ** (-1 / (alpha - 1)))[::-1].copy()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(10, 60), min_tail=st.integers(5, 10))
def test_a_fit_equals_plain_loops(seed: int, count: int, min_tail: int) -> None:
    values = np.sort(np.random.default_rng(seed).lognormal(size=count))[::-1].copy()
    found = power_law(torch.from_numpy(values), min_tail)
    alpha, ks, x_min, tail = by_loops(values.tolist(), min_tail)
    assert float(found.alpha) == pytest.approx(alpha, rel=1e-9)
    assert float(found.ks) == pytest.approx(ks, abs=1e-12)
    assert (float(found.x_min), float(found.tail)) == (x_min, tail)
    assert float(found.stderr) == pytest.approx((alpha - 1) / math.sqrt(tail))


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_of_a_long_sample_is_found_within_three_standard_errors(alpha: float) -> None:
    found = power_law(torch.from_numpy(np.stack([pareto(2000, alpha, seed) for seed in range(4)])))
    assert bool(((found.alpha - alpha).abs() < 3 * found.stderr).all())
    assert bool((found.ks < 0.05).all())


def test_a_batch_is_fitted_matrix_by_matrix_and_scale_moves_x_min_alone() -> None:
    values = torch.from_numpy(np.stack([pareto(40, 2.2, seed) for seed in range(6)])).reshape(2, 3, 40)
    whole, scaled = power_law(values), power_law(7 * values)
    for index in np.ndindex(2, 3):
        alone = power_law(values[index])
        assert [float(part[index]) for part in whole] == [float(part) for part in alone]
    assert torch.allclose(scaled.alpha, whole.alpha)
    assert torch.allclose(scaled.ks, whole.ks)
    assert torch.allclose(scaled.x_min, 7 * whole.x_min)


def test_cut_offs_are_taken_a_few_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.from_numpy(np.stack([pareto(64, 2.5, seed) for seed in range(3)]))
    whole = power_law(values)
    monkeypatch.setattr("cpt_lab.spectra.fits.MOST_ELEMENTS", 1000)
    assert all(torch.equal(one, other) for one, other in zip(whole, power_law(values), strict=True))


def test_the_tail_has_at_least_ten_values_and_a_tenth_of_all() -> None:
    values = torch.from_numpy(np.random.default_rng(0).lognormal(sigma=2, size=(50, 300))).sort(descending=True).values
    assert float(power_law(values).tail.min()) >= 30
    assert float(power_law(values[:, :40]).tail.min()) >= 10


def test_values_that_are_equal_to_the_cut_off_are_all_in_the_tail() -> None:
    values = torch.tensor([8.0, 4.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    found = power_law(values, min_tail=5)
    assert float(found.tail) in (6, 8)
    assert float(found.alpha) == pytest.approx(by_loops(values.tolist(), 5)[0])


@pytest.mark.parametrize("values", [torch.zeros(20), torch.ones(20), torch.arange(9, 0, -1)], ids=["zeros", "constant", "nine values"])
def test_what_has_no_tail_has_no_fit(values: torch.Tensor) -> None:
    assert all(math.isnan(float(part)) for part in power_law(values.double()))


def test_a_tail_of_fewer_than_five_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_tail is 4.*at least 5"):
        power_law(torch.ones(20, dtype=torch.float64), min_tail=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_errors_of_a_low_rank_matrix_are_not_fitted(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 12, generator=generator, dtype=torch.float64) for size in (256, 64))
    matrix = ((left * torch.logspace(0, -1, 12)) @ right.mT).to(dtype)
    assert float(MEASURES["pl_tail"](spectrum(matrix, dtype))) <= 12


def test_all_values_of_a_large_bf16_matrix_are_fitted() -> None:
    matrix = torch.randn(1024, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = spectrum(matrix, torch.bfloat16)
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2 / 1024
    alpha, ks, x_min, tail = by_loops(exact.tolist(), 13)
    assert [float(MEASURES[name](found)) for name in ("pl_alpha", "pl_ks", "pl_xmin", "pl_tail")] == pytest.approx([alpha, ks, x_min, tail])
