"""Power-law fits: parity with the `powerlaw` package and with plain loops, the exponents of known samples, and what cannot be fitted."""

from __future__ import annotations

import contextlib
import io
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_lab.architecture import ATTENTION_ROLES, head_matrix
from cpt_lab.spectra import MEASURES, fits
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.fits import Distance, PowerLaw, power_law
from factory import tiny_model, tiny_shape
from spectra_cases import fit_by_loops, pareto, random, spectrum, with_values


def by_package(values: np.ndarray, min_tail: int) -> tuple[float, float, float, float]:
    """The same by `powerlaw` < 2, which leaves out the largest cut-off that it is offered."""
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with silent[0], silent[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import powerlaw

        found = powerlaw.Fit(values, xmin=(float(values[-1]), float(values[min_tail - 2])))
        return float(found.alpha), float(found.D), float(found.xmin), float(found.n)


def numbers(law: PowerLaw) -> tuple[float, float, float, float]:
    return float(law.alpha), float(law.ks), float(law.x_min), float(law.tail)


# -------------------------------------------------------------------------------------------------------------- parity


@settings(deadline=None, max_examples=25)
@given(
    *(st.integers(0, 10**6), st.integers(10, 50), st.integers(5, 10)),
    *(st.sampled_from(["clauset", "two_sided"]), st.sampled_from([None, 1, 2])),
)
def test_a_fit_equals_plain_loops(seed: int, count: int, min_tail: int, ks: Distance, decimals: int | None) -> None:
    values = np.sort(np.random.default_rng(seed).lognormal(size=count))[::-1].copy()
    values = values if decimals is None else np.round(values, decimals)  # ties, and zeros
    found = power_law(torch.from_numpy(values), min_tail, ks=ks)
    alpha, distance, x_min, tail = fit_by_loops(values[values > 0].tolist(), min_tail, ks)
    if math.isnan(alpha):
        assert math.isnan(float(found.alpha))
    else:
        assert float(found.ks) == pytest.approx(distance, abs=1e-12)
        assert (float(found.x_min), float(found.tail)) == (x_min, tail)
        assert float(found.alpha) == pytest.approx(alpha, rel=1e-9)
        assert float(found.stderr) == pytest.approx((alpha - 1) / math.sqrt(tail))
    assert float(found.rank) == (values > 0).sum()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmo2", "gpt_neox"])
def test_the_fit_of_every_head_of_a_checkpoint_equals_that_of_the_powerlaw_package(family: str) -> None:
    shape = tiny_shape(family).but(hidden_size=192, head_dim=48)
    parameters = dict(tiny_model(shape).named_parameters())
    for layer in range(shape.num_layers):
        for role in ATTENTION_ROLES:
            for head in range(shape.num_heads):
                part = head_matrix(shape, layer, head, role)
                block = parameters[part.parameter].detach().narrow(part.axis, part.start, part.stop - part.start).double()
                block = block * torch.logspace(0, -0.5, block.shape[1])  # not all alike
                source = spectrum(block, torch.float32)
                values = source.eigenvalues
                found = fits.fit(source).law
                assert numbers(found) == pytest.approx(by_package(values.numpy(), 10), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1])
def test_fits_of_heavy_tails_and_of_ties_equal_those_of_the_powerlaw_package(decimals: int | None) -> None:
    for seed in range(3):
        values = pareto(120, 2.5, seed)
        values = values if decimals is None else np.round(values, decimals)
        assert numbers(power_law(torch.from_numpy(values), 12)) == pytest.approx(by_package(values, 12), rel=1e-9, abs=1e-9)


# ------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_is_fitted_matrix_by_matrix_bit_for_bit_and_scale_moves_x_min_alone() -> None:
    values = torch.from_numpy(np.stack([pareto(61, 2.2, seed) for seed in range(6)])).reshape(2, 3, 61)
    whole, scaled = power_law(values), power_law(7 * values)
    for index in np.ndindex(2, 3):
        alone = power_law(values[index])
        assert [float(part[index]) for part in whole] == [float(part) for part in alone]
    assert torch.allclose(scaled.alpha, whole.alpha)
    assert torch.allclose(scaled.ks, whole.ks)
    assert torch.allclose(scaled.x_min, 7 * whole.x_min)


@pytest.mark.parametrize("ks", ["clauset", "two_sided"])
def test_trying_a_few_places_first_changes_no_result(monkeypatch: pytest.MonkeyPatch, ks: Distance) -> None:
    values = torch.from_numpy(np.stack([pareto(150, 2.5, seed) for seed in range(8)]))
    whole = power_law(values, ks=ks)
    monkeypatch.setattr(fits, "SCREENING", 150)
    assert all(torch.equal(one, other) for one, other in zip(whole, power_law(values, ks=ks), strict=True))


def test_cut_offs_are_taken_a_few_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.from_numpy(np.stack([pareto(64, 2.5, seed) for seed in range(3)]))
    whole = power_law(values)
    monkeypatch.setattr(fits, "MOST_ELEMENTS", 1000)
    assert all(torch.equal(one, other) for one, other in zip(whole, power_law(values), strict=True))


# --------------------------------------------------------------------------------------------------------------- facts


@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
def test_the_exponent_of_a_long_sample_is_found_within_three_standard_errors(alpha: float) -> None:
    found = power_law(torch.from_numpy(np.stack([pareto(2000, alpha, seed) for seed in range(4)])))
    assert bool(((found.alpha - alpha).abs() < 3 * found.stderr).all())
    assert bool((found.ks < 0.05).all())


def test_the_exponent_of_exact_quantiles_is_that_of_the_law() -> None:
    places = torch.arange(1, 4001, dtype=torch.float64)
    found = power_law(((places - 0.5) / 4000) ** (-1 / 1.5), min_tail=4000)
    assert float(found.alpha) == pytest.approx(2.5, rel=1e-3)
    assert float(found.ks) < 1e-3


def test_the_two_sided_distance_of_one_cut_off_is_larger_by_up_to_one_step() -> None:
    values = torch.from_numpy(pareto(40, 2.5, 0))
    one, both = (float(power_law(values, 40, ks=ks).ks) for ks in ("clauset", "two_sided"))
    assert one <= both <= one + 1 / 40 + 1e-12


def test_the_tail_has_at_least_ten_values_and_a_tenth_of_all() -> None:
    values = torch.from_numpy(np.random.default_rng(0).lognormal(sigma=2, size=(50, 300))).sort(descending=True).values
    assert float(power_law(values).tail.min()) >= 30
    assert float(power_law(values[:, :40]).tail.min()) >= 10


@pytest.mark.parametrize("values", [torch.zeros(20), torch.ones(20), torch.arange(9, 0, -1), torch.ones(1)])
def test_what_has_no_tail_has_no_fit(values: torch.Tensor) -> None:
    law = power_law(values.double())
    assert all(math.isnan(float(part)) for part in law[:-1])
    assert float(law.rank) == (values > 0).sum()


def test_a_tail_of_fewer_than_five_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_tail is 4.*at least 5"):
        power_law(torch.ones(20, dtype=torch.float64), min_tail=4)


def test_a_fit_is_suspect_by_its_exponent_and_its_tail() -> None:
    alpha, tail = torch.tensor([3.0, 1.4, 6.0, 9.0, 3.0, math.nan]), torch.tensor([20.0, 20, 20, 20, 9, math.nan])
    found = fits.suspect(PowerLaw(alpha, alpha, alpha, tail, alpha, tail))
    assert found.tolist() == pytest.approx([0, 1, 1, 2, 2, math.nan], nan_ok=True)


# ---------------------------------------------------------------------------------------------------------- of matrices


def columns(matrix: torch.Tensor, stored: torch.dtype) -> dict[str, float]:
    found = FAMILIES["power_law"].columns(spectrum(matrix, stored), MEASURES["power_law"])
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_errors_of_a_low_rank_matrix_are_not_fitted(dtype: torch.dtype) -> None:
    matrix = with_values(torch.logspace(0, -1, 12, dtype=torch.float64), 256).to(dtype)
    low = torch.cat([matrix, torch.zeros(256, 52, dtype=dtype)], dim=1)
    low = (low.double() @ torch.linalg.qr(random(64, 64)).Q).to(dtype)
    found = columns(low, dtype)
    assert found["pl_rank"] == 12
    assert found["pl_tail"] <= 12


def test_the_columns_of_a_large_bf16_matrix_are_of_all_its_values() -> None:
    matrix = torch.randn(1024, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2 / 1024
    alpha, ks, x_min, tail = fit_by_loops(exact.tolist(), 13)
    expected = {"pl_alpha": alpha, "pl_ks": ks, "pl_xmin": x_min, "pl_tail": tail, "pl_stderr": (alpha - 1) / math.sqrt(tail)}
    expected |= {"pl_rank": 128, "pl_suspect": 2.0 if alpha > 8 else 1.0, "weighted_alpha": alpha * math.log10(exact[0])}
    assert columns(matrix, torch.bfloat16) == pytest.approx(expected)
