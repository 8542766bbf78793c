"""The Marchenko-Pastur law: its integral, true random matrices, spikes of known size, plain loops, and matrices without a bulk."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from cpt_lab.spectra import MEASURES
from cpt_lab.spectra import marchenko_pastur as mp
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.marchenko_pastur import Null
from spectra_cases import orthonormal, random, spectrum, with_values

NAMES = MEASURES["marchenko_pastur"]


def columns(matrices: torch.Tensor, null: Null = "analytic", permuted: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    return FAMILIES["marchenko_pastur"].columns(spectrum(matrices, null=permuted), NAMES, null=null)


def measured(matrix: torch.Tensor, null: Null = "analytic", permuted: torch.Tensor | None = None) -> dict[str, float]:
    return {name: float(value) for name, value in columns(matrix, null, permuted).items()}


def permutation(matrix: torch.Tensor, seed: int = 0) -> torch.Tensor:
    order = torch.randperm(matrix.numel(), generator=torch.Generator().manual_seed(seed))
    return matrix.flatten()[order].reshape(matrix.shape)


def density(value: float, sigma: float, ratio: float) -> float:
    """P eq. 10 with the factor m / n."""
    lower, upper = (sigma**2 * (1 + sign * math.sqrt(ratio)) ** 2 for sign in (-1, 1))
    return math.sqrt(max(0.0, (upper - value) * (value - lower))) / (2 * math.pi * ratio * sigma**2 * value)


def by_loops(matrix: np.ndarray, null: np.ndarray | None) -> dict[str, float]:
    """Every measure, one eigenvalue after another, the distribution by quadrature."""
    n, m = sorted(matrix.shape)
    ratio, variance = n / m, float(matrix.var())
    eigenvalues = sorted(float(value) ** 2 / m for value in np.linalg.svd(matrix, compute_uv=False))
    if null is not None:
        edge = variance * (1 + math.sqrt(ratio)) ** 2
        variance -= sum(value for value in (np.linalg.svd(null, compute_uv=False) ** 2 / m).tolist() if value > edge) / n
    sigma = math.sqrt(variance)
    lower, upper = (variance * (1 + sign * math.sqrt(ratio)) ** 2 for sign in (-1, 1))

    def below(value: float) -> float:
        return float(quad(density, lower, min(max(value, lower), upper), args=(sigma, ratio), limit=200)[0])

    def distance(values: list[float]) -> float:
        steps = [(below(value), place / len(values), (place + 1) / len(values)) for place, value in enumerate(values)]
        return max(max(abs(model - before), abs(model - after)) for model, before, after in steps)

    outliers = sum(value > upper for value in eigenvalues)
    center, scale = (math.sqrt(m - 1) + math.sqrt(n)) ** 2, (1 / math.sqrt(m - 1) + 1 / math.sqrt(n)) ** (1 / 3)
    return {
        "mp_edge": upper,
        "mp_sigma": sigma,
        "mp_outliers": outliers,
        "mp_outlier_share": outliers / n,
        "mp_ks": distance([value for value in eigenvalues if lower <= value <= upper]),
        "mp_ks_full": distance(eigenvalues),
        "mp_tracy_widom": (eigenvalues[-1] * m / variance - center) / (math.sqrt(center) * scale),
    }


# ------------------------------------------------------------------------------------------------------------- the law


@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.5, 0.0625, 1e-3])
@pytest.mark.parametrize("sigma", [1.0, 0.02])
def test_the_density_integrates_to_one(ratio: float, sigma: float) -> None:
    lower, upper = (float(edge) for edge in mp.edges(torch.tensor(sigma, dtype=torch.float64), ratio))
    places = (1 - torch.linspace(0, math.pi, 200_001, dtype=torch.float64).cos()) / 2
    values = lower + (upper - lower) * places
    heights = mp.density(values[1:-1], torch.tensor(sigma, dtype=torch.float64), ratio)
    middles = (values[2:] - values[:-2]) / 2
    assert float((heights * middles).sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0625, 1e-4])
def test_the_distribution_is_the_integral_of_the_density(ratio: float) -> None:
    sigma = torch.tensor(0.3, dtype=torch.float64)
    lower, upper = (float(edge) for edge in mp.edges(sigma, ratio))
    for share in (0.02, 0.3, 0.7, 0.99):
        value = lower + share * (upper - lower)
        expected = 1 - quad(density, value, upper, args=(0.3, ratio), limit=200)[0]
        found = mp.distribution(torch.tensor([value], dtype=torch.float64), sigma, ratio)
        assert float(found) == pytest.approx(expected, abs=1e-8)
    outside = torch.tensor([0.0, lower, upper, 2 * upper], dtype=torch.float64)
    assert mp.distribution(outside, sigma, ratio).tolist() == pytest.approx([0, 0, 1, 1], abs=1e-9)


# -------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("shape", [(60, 20), (30, 30), (15, 50)])
@pytest.mark.parametrize("null", ["analytic", "permute"])
def test_every_measure_equals_plain_loops(shape: tuple[int, int], null: Null) -> None:
    matrix = random(*shape, seed=3) + 0.5 * random(shape[0], 2, seed=1) @ random(2, shape[1], seed=2) + 0.1
    permuted = permutation(matrix) if null == "permute" else None
    expected = by_loops(matrix.numpy(), None if permuted is None else permuted.numpy())
    assert measured(matrix, null, permuted) == pytest.approx(expected, rel=1e-9, abs=1e-7)


def test_a_permuted_matrix_with_outliers_of_its_own_lowers_the_edge() -> None:
    heavy = random(256, 64).pow(5)  # a few large entries make large eigenvalues in any order
    analytic, permuted = measured(heavy), measured(heavy, "permute", permutation(heavy))
    assert permuted["mp_edge"] < 0.9 * analytic["mp_edge"]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-4, 3.0, 1e5]))
def test_scale_moves_edge_and_sigma_alone_and_transposition_nothing(seed: int, scale: float) -> None:
    matrix = random(24, 10, seed=seed)
    values, scaled = measured(matrix), measured(scale * matrix)
    assert measured(matrix.mT) == pytest.approx(values, rel=1e-9)
    factors = {"mp_edge": scale**2, "mp_sigma": scale}
    assert scaled == pytest.approx({name: value * factors.get(name, 1.0) for name, value in values.items()}, rel=1e-7)


def test_a_batch_is_measured_matrix_by_matrix_bit_for_bit() -> None:
    batch = random(2, 3, 33, 19)
    whole = columns(batch)
    for index in np.ndindex(2, 3):
        assert {name: float(values[index]) for name, values in whole.items()} == measured(batch[index])


# --------------------------------------------------------------------------------------------------------------- facts


def test_the_distance_of_gaussian_matrices_falls_as_they_grow() -> None:
    for name in ("mp_ks", "mp_ks_full"):
        distances = [float(columns(random(8, 4 * size, size, seed=size))[name].mean()) for size in (8, 32, 128)]
        assert distances[0] > 2 * distances[1] > 4 * distances[2]
        assert distances[2] < 0.02


def test_gaussian_matrices_have_the_edge_where_their_spectra_end() -> None:
    found, matrices = columns(random(20, 400, 100)), random(20, 400, 100)
    assert found["mp_sigma"].tolist() == pytest.approx([1] * 20, abs=0.02)
    largest = spectrum(matrices).eigenvalues[:, 0]
    assert float((largest / found["mp_edge"] - 1).abs().max()) < 0.08
    assert float(found["mp_outliers"].max()) <= 1


def test_the_largest_eigenvalues_of_gaussian_matrices_are_tracy_widom_variables() -> None:
    found = columns(random(200, 160, 80))["mp_tracy_widom"]
    assert float(found.mean()) == pytest.approx(-1.21, abs=0.2)
    assert float(found.std()) == pytest.approx(1.27, abs=0.25)


@pytest.mark.parametrize("strength", [1.6, 2.5])
def test_spikes_above_the_threshold_stand_where_the_theory_of_spiked_models_has_them(strength: float) -> None:
    rows, ratio = 1600, 0.25  # a spike of theta^2 > sqrt(q) appears at (1 + theta^2) (1 + q / theta^2)
    size = int(ratio * rows)
    spikes = with_values(torch.full((3,), strength * math.sqrt(rows), dtype=torch.float64), rows) @ orthonormal(size, 3, seed=5).mT
    source = spectrum(random(rows, size, seed=9) + spikes)
    bulk = mp.fit(source)
    assert float(bulk.outliers) == 3
    expected = (1 + strength**2) * (1 + ratio / strength**2)
    assert bulk.eigenvalues[:3].tolist() == pytest.approx([expected] * 3, rel=0.06)
    variance = 1 + 3 * strength**2 / size  # of all entries: spikes of this strength are a part of it
    assert float(bulk.edges[1]) == pytest.approx(variance * (1 + math.sqrt(ratio)) ** 2, rel=0.01)
    assert float(mp.tracy_widom(bulk)) > 20


def test_a_spike_below_the_threshold_is_no_outlier() -> None:
    rows, size = 1600, 400
    spike = torch.outer(orthonormal(rows, 1)[:, 0], orthonormal(size, 1, seed=1)[:, 0]) * 0.5 * math.sqrt(rows)
    assert measured(random(rows, size, seed=9) + spike)["mp_outliers"] == 0


def test_outliers_count_as_misfit_of_the_whole_spectrum_and_not_of_its_bulk() -> None:
    spiked = random(200, 50) + 10 * random(200, 20, seed=1) @ random(20, 50, seed=2) / 20
    values = measured(torch.cat([random(200, 50), spiked]))
    assert values["mp_ks_full"] > values["mp_ks"]


# ---------------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("entry", [0.0, 0.3])
def test_a_matrix_of_equal_entries_has_no_bulk(entry: float) -> None:
    values = measured(torch.full((30, 12), entry, dtype=torch.float64))
    assert (values["mp_edge"], values["mp_sigma"]) == (0, 0)
    assert values["mp_outliers"] == (0 if entry == 0 else 1)
    assert all(math.isnan(values[name]) for name in ("mp_ks", "mp_ks_full", "mp_tracy_widom"))


def test_a_spectrum_without_a_value_between_the_edges_has_no_distance_of_its_bulk() -> None:
    values = measured(torch.outer(random(40, seed=1), random(20, seed=2)))
    assert math.isnan(values["mp_ks"])
    assert values["mp_ks_full"] > 0.4


@pytest.mark.parametrize("shape", [(9, 1), (1, 1)])
def test_a_single_column_has_numbers_or_nan(shape: tuple[int, int]) -> None:
    assert all(math.isnan(value) or value >= -3 for value in measured(random(*shape)).values())


def test_a_permuted_null_needs_the_permuted_values() -> None:
    with pytest.raises(ValueError, match=r"null is permute, and there are no singular values of the permuted matrix"):
        columns(random(10, 5), "permute")
