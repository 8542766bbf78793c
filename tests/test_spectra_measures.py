"""Norms, ranks and shapes: analytic anchors, invariances, parity with plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_lab.spectra import MEASURES, measures
from cpt_lab.spectra.families import FAMILIES
from spectra_cases import orthonormal, random, spectrum

RANKS = ("stable_rank", "effective_rank", "hard_rank")
SHAPES = (*RANKS, "spectral_entropy", "spectral_gap", "rank_decay_alpha")  # do not depend on scale


def measured(matrix: torch.Tensor, stored: torch.dtype = torch.float64) -> dict[str, float]:
    return {name: float(value) for name, value in FAMILIES["norms"].columns(spectrum(matrix, stored), MEASURES["norms"]).items()}


def by_loops(values: list[float], tolerance: float) -> dict[str, float]:
    """Every measure of singular values, descending, of which those up to the tolerance are rounding."""
    total = sum(values)
    entropy = -sum(value / total * math.log(value / total) for value in values if value > 0)
    found = [value for value in values if value > tolerance]
    weights = [value / sum(found) for value in found]
    x, y = [math.log(place) for place in range(1, len(found) + 1)], [math.log(value) for value in found]
    mean_x, mean_y = (sum(weight * part for weight, part in zip(weights, parts, strict=True)) for parts in (x, y))
    covariance = sum(weight * (a - mean_x) * (b - mean_y) for weight, a, b in zip(weights, x, y, strict=True))
    variance = sum(weight * (a - mean_x) ** 2 for weight, a in zip(weights, x, strict=True))
    return {
        "frobenius_norm": math.sqrt(sum(value**2 for value in values)),
        "spectral_norm": values[0],
        "stable_rank": sum(value**2 for value in values) / values[0] ** 2,
        "effective_rank": math.exp(entropy),
        "spectral_entropy": entropy,
        "hard_rank": len(found),
        "spectral_gap": found[0] / found[1] if len(found) > 1 else math.nan,
        "rank_decay_alpha": -covariance / variance if len(found) > 1 else math.nan,
    }


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 20), columns=st.integers(1, 20))
def test_every_measure_equals_plain_loops(seed: int, rows: int, columns: int) -> None:
    matrix = random(rows, columns, seed=seed)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False).tolist()
    assert measured(matrix) == pytest.approx(by_loops(values, 1e-14 * values[0]), rel=1e-9, abs=1e-12, nan_ok=True)


def test_a_batch_is_measured_matrix_by_matrix() -> None:
    batch = random(2, 3, 12, 7)
    whole = FAMILIES["norms"].columns(spectrum(batch), MEASURES["norms"])
    for index in np.ndindex(2, 3):
        assert {name: float(values[index]) for name, values in whole.items()} == measured(batch[index])


def test_an_orthogonal_matrix_has_full_rank_in_every_sense() -> None:
    values = measured(orthonormal(40, 16))
    assert values["spectral_norm"] == pytest.approx(1)
    assert values["frobenius_norm"] == pytest.approx(4)
    assert values["spectral_entropy"] == pytest.approx(math.log(16))
    assert [values[name] for name in RANKS] == pytest.approx([16, 16, 16])
    assert (values["spectral_gap"], values["rank_decay_alpha"]) == pytest.approx((1, 0), abs=1e-12)


def test_an_outer_product_has_rank_one_in_every_sense() -> None:
    values = measured(torch.outer(random(40), random(16, seed=1)))
    assert values["spectral_norm"] == pytest.approx(values["frobenius_norm"])
    assert [values[name] for name in RANKS] == pytest.approx([1, 1, 1], abs=1e-9)
    assert values["spectral_entropy"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(values["spectral_gap"])
    assert math.isnan(values["rank_decay_alpha"])


def test_the_zero_matrix_has_norms_and_ranks_of_zero_and_no_shape() -> None:
    values = measured(torch.zeros(5, 3))
    assert {name for name, value in values.items() if value == 0} == set(MEASURES["norms"]) - {"spectral_gap", "rank_decay_alpha"}
    assert math.isnan(values["spectral_gap"])
    assert math.isnan(values["rank_decay_alpha"])


def test_a_single_column_has_rank_one() -> None:
    values = measured(torch.tensor([[3.0], [4.0]]))
    assert [values[name] for name in ("frobenius_norm", "spectral_norm", *RANKS, "spectral_entropy")] == pytest.approx([5, 5, 1, 1, 1, 0])
    assert math.isnan(values["spectral_gap"])


def test_two_known_singular_values_by_hand() -> None:
    values = torch.tensor([3.0, 1.0], dtype=torch.float64)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(measures.frobenius_norm(values)) == pytest.approx(math.sqrt(10))
    assert float(measures.stable_rank(values)) == pytest.approx(10 / 9)
    assert float(measures.spectral_entropy(values)) == pytest.approx(entropy)
    assert float(measures.effective_rank(values)) == pytest.approx(math.exp(entropy))
    assert float(measures.spectral_gap(values)) == pytest.approx(3)
    assert float(measures.rank_decay_alpha(values)) == pytest.approx(math.log(3) / math.log(2))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.7])
def test_the_decay_of_a_power_of_the_place_is_its_exponent(alpha: float) -> None:
    values = torch.arange(1, 65, dtype=torch.float64) ** -alpha
    assert float(measures.rank_decay_alpha(values)) == pytest.approx(alpha, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 20), columns=st.integers(1, 20), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_measures_obey_their_bounds_and_ignore_transposition_rotation_and_scale(seed: int, rows: int, columns: int, scale: float) -> None:
    matrix = random(rows, columns, seed=seed)
    rotated = orthonormal(rows, rows, seed) @ matrix @ orthonormal(columns, columns, seed + 1)
    values, scaled = measured(matrix), measured(scale * matrix)
    rank = min(rows, columns)
    assert values["spectral_norm"] <= values["frobenius_norm"] * (1 + 1e-12) <= math.sqrt(rank) * values["spectral_norm"] * (1 + 1e-9)
    assert 1 - 1e-9 <= values["stable_rank"] <= values["effective_rank"] * (1 + 1e-9) <= rank * (1 + 1e-8)
    assert measured(matrix.mT) == pytest.approx(values, rel=1e-9, abs=1e-12, nan_ok=True)
    assert measured(rotated) == pytest.approx(values, rel=1e-8, abs=1e-11, nan_ok=True)
    assert [scaled[name] for name in SHAPES] == pytest.approx([values[name] for name in SHAPES], rel=1e-8, abs=1e-11, nan_ok=True)
    assert scaled["frobenius_norm"] == pytest.approx(scale * values["frobenius_norm"])


# ------------------------------------------------------------------------------------------------------------ rounding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(256, 64), (64, 64)])
def test_the_hard_rank_of_a_low_rank_matrix_is_not_that_of_its_rounding_errors(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    low = (random(shape[0], 8) @ random(8, shape[1], seed=1)).to(dtype)
    assert measured(low, dtype)["hard_rank"] == 8


@pytest.mark.parametrize("shape", [(4096, 128), (512, 256)])
def test_the_hard_rank_of_a_large_bf16_matrix_is_full(shape: tuple[int, int]) -> None:
    assert measured(random(*shape).bfloat16(), torch.bfloat16)["hard_rank"] == shape[1]


def test_the_rounding_of_a_delta_is_that_of_both_checkpoints() -> None:
    base, low = random(256, 64), 0.5 * random(256, 4, seed=1) @ random(4, 64, seed=2)
    tuned, base = (base + low).bfloat16().double(), base.bfloat16().double()
    of_delta, eps = spectrum(tuned - base), torch.finfo(torch.bfloat16).eps
    stored = (tuned.square().mean() + base.square().mean()).sqrt()
    known, unknown = (measures.Spectrum(of_delta.values, 256, 64, eps, of_delta.std, of_delta.mean, stored=rms) for rms in (stored, None))
    assert float(measures.hard_rank(known.significant)) == 4
    assert float(measures.hard_rank(unknown.significant)) > 4


def test_rounding_errors_are_as_large_as_is_said() -> None:
    exact = random(1024, 128)
    errors = torch.linalg.matrix_norm(exact.bfloat16().double() - exact, ord=2)
    assert 1 < float(spectrum(exact, torch.bfloat16).rounding / errors) < 2.5
