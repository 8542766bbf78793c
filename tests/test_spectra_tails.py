"""Is a tail a power law: likelihood ratios against the `powerlaw` package and scipy, the bootstrap against loops, and what has no tail."""

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
from scipy import integrate, optimize, stats

from cpt_lab.spectra import MEASURES, tails, tilted
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.fits import power_law
from cpt_lab.spectra.measures import Spectrum
from cpt_lab.spectra.tails import likelihood_ratios, p_values, synthesised
from cpt_lab.spectra.tilted import CutOff, Gaussian
from spectra_cases import fit_by_loops, pareto

NAMES = MEASURES["tails"]


def descending(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.sort(values)[::-1].copy())


def lognormal(count: int, seed: int, sigma: float = 1.0) -> torch.Tensor:
    return descending(np.random.default_rng(seed).lognormal(sigma=sigma, size=count))


def cut_off(count: int, seed: int) -> torch.Tensor:
    """A sample of x^-1.8 e^(-x / 10) from 1 on, by rejection."""
    random = np.random.default_rng(seed)
    values = (1 - random.random(40 * count)) ** (-1 / 0.8)
    return descending(values[random.random(len(values)) < np.exp(-values / 10)][:count])


SAMPLES = [lognormal(200, 0), lognormal(150, 1, 2.0), descending(pareto(200, 2.5, 0)), cut_off(150, 0), cut_off(150, 2)]


def ratios_by_package(values: torch.Tensor, x_min: float) -> list[tuple[float, float]]:
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with silent[0], silent[1], warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import powerlaw

        found = powerlaw.Fit(values.numpy(), xmin=x_min)
        return [found.distribution_compare("power_law", other) for other in ("exponential", "lognormal", "truncated_power_law")]


# --------------------------------------------------------------------------------------------------- likelihood ratios


@pytest.mark.parametrize("values", SAMPLES[1:])  # of the first the package stops short of the maximum, at the edge of a family
def test_likelihood_ratios_equal_those_of_the_powerlaw_package(values: torch.Tensor) -> None:
    law = power_law(values)
    expected = ratios_by_package(values, float(law.x_min))
    for found, (ratio, p) in zip(likelihood_ratios(values, law), expected, strict=True):
        assert float(found.log_ratio) == pytest.approx(ratio, abs=1e-4)
        assert float(found.p) == pytest.approx(p, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [Gaussian(), CutOff()])
@pytest.mark.parametrize("values", SAMPLES[:4])
def test_the_most_likely_member_of_a_family_equals_that_of_scipy(family: tilted.Tilted, values: torch.Tensor) -> None:
    y = (values / values[-1]).log()
    found = tilted.log_likelihoods(y[None], torch.ones(1, len(y)).bool(), family)

    def mismatch(parameters: np.ndarray) -> float:
        a, b = parameters[0], math.exp(parameters[1])

        def height(place: float) -> float:
            return math.exp(min(700.0, -a * place - b * float(family.g(torch.tensor(place, dtype=torch.float64)))))

        norm = integrate.quad(height, 0, 40, limit=200, points=[1.0, 5.0])[0]
        return float((a * y + b * family.g(y)).sum()) + len(y) * math.log(norm)

    bounds = [(family.smallest_a if math.isfinite(family.smallest_a) else -50, 50), (-25, 5)]
    best = min(optimize.minimize(mismatch, start, bounds=bounds, method="L-BFGS-B").fun for start in ([1.0, -3.0], [0.1, 0.0], [0.5, -8.0]))
    assert -float(found.sum()) == pytest.approx(best, abs=2e-4)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), count=st.integers(12, 60), sigma=st.floats(0.05, 4))
def test_what_contains_the_power_law_is_never_less_likely(seed: int, count: int, sigma: float) -> None:
    values = lognormal(count, seed, sigma)
    _, wider, truncated = likelihood_ratios(values, power_law(values))
    assert float(wider.log_ratio) <= 1e-9
    assert float(truncated.log_ratio) <= 0
    assert 0 <= float(wider.p) <= 1
    assert 0 <= float(truncated.p) <= 1


def test_where_a_family_has_nothing_better_than_the_power_law_the_ratio_is_zero_and_its_p_one() -> None:
    values = descending(pareto(200, 2.5, 1))
    _, wider, truncated = likelihood_ratios(values, power_law(values))
    assert [float(part) for part in (*wider, *truncated)] == [0, 1, 0, 1]


@pytest.mark.parametrize("width", [1e-3, 1e-5, 1e-7])
def test_over_a_narrow_tail_the_law_that_is_cut_off_hardest_is_the_exponential(width: float) -> None:
    values = 1 + width * torch.linspace(1, 0, 60, dtype=torch.float64)
    exponential, _, truncated = likelihood_ratios(values, power_law(values, 60))
    assert float(truncated.log_ratio) == pytest.approx(float(exponential.log_ratio), rel=1e-2)
    assert float(truncated.log_ratio) == pytest.approx(
        -60 * width / 6, rel=0.05
    )  # -(E[y] - E[y^2] / (2 E[y])) of each, y even on the width


def test_a_power_law_is_told_from_an_exponential_and_an_exponential_from_it() -> None:
    random = np.random.default_rng(0)
    heavy, light = descending(pareto(400, 2.2, 3)), descending(1 + random.exponential(size=400))
    (found, *_), (other, *_) = (likelihood_ratios(values, power_law(values, 400)) for values in (heavy, light))
    assert float(found.log_ratio) > 10
    assert float(found.p) < 0.1
    assert float(other.log_ratio) < -10
    assert float(other.p) < 0.1


# ----------------------------------------------------------------------------------------------------------- bootstrap


def test_synthetic_spectra_are_the_law_above_x_min_and_the_spectrum_below() -> None:
    values = lognormal(120, 0)
    law = power_law(values)
    rank, tail = 120, int(law.tail)
    drawn = synthesised(values, law, samples=400, generator=torch.Generator().manual_seed(0))
    above = drawn >= law.x_min
    assert drawn.shape == (400, rank)
    assert bool((drawn[:, 1:] <= drawn[:, :-1]).all())
    assert float(above.double().mean()) == pytest.approx(tail / rank, abs=0.02)
    assert set(drawn[~above].tolist()) == set(values[tail:].tolist())
    fitted = 1 - (drawn[above] / law.x_min) ** (1 - law.alpha)
    assert stats.kstest(fitted.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("ks", ["clauset", "two_sided"])
def test_the_p_value_is_the_share_of_synthetic_spectra_that_are_further_away(ks: tails.Distance) -> None:
    values = lognormal(30, 4)
    law = power_law(values, 10, ks=ks)
    drawn = synthesised(values, law, samples=40, generator=torch.Generator().manual_seed(7))
    expected = sum(fit_by_loops(one.tolist(), 10, ks)[1] >= float(law.ks) for one in drawn) / 40
    assert float(p_values(values, law, samples=40, seeds=[7], min_tail=10, ks=ks)) == expected


def test_the_p_value_keeps_power_laws_and_rejects_what_is_far_from_one() -> None:
    straight = torch.stack([descending(pareto(100, 2.5, seed)) for seed in range(6)])
    bent = torch.linspace(2, 1, 100, dtype=torch.float64).expand(1, -1)
    found = p_values(straight, power_law(straight), samples=100, seeds=range(6))
    assert int((found > 0.1).sum()) >= 5
    assert float(p_values(bent, power_law(bent, 50), samples=100, seeds=[0], min_tail=50)) < 0.05


def test_a_p_value_depends_on_its_seed_and_not_on_what_else_is_in_the_batch() -> None:
    values = torch.stack([lognormal(60, seed) for seed in range(3)])
    whole = p_values(values, power_law(values), samples=60, seeds=[5, 6, 7])
    alone = p_values(values[1], power_law(values[1]), samples=60, seeds=[6])
    assert float(whole[1]) == float(alone)
    assert float(whole[1]) != float(p_values(values[1], power_law(values[1]), samples=60, seeds=[9]))


def test_a_seed_is_needed_for_each_spectrum() -> None:
    values = torch.stack([lognormal(60, seed) for seed in range(3)])
    with pytest.raises(ValueError, match="2 seeds for 3 spectra"):
        p_values(values, power_law(values), samples=10, seeds=[0, 1])


# -------------------------------------------------------------------------------------------------------------- columns


def test_what_has_no_fit_has_no_tests_and_its_neighbours_have() -> None:
    values = torch.stack([torch.ones(40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64), lognormal(40, 0)])
    source = Spectrum(values.sqrt(), 40, 40, torch.finfo(torch.float64).eps, values[:, 0], values[:, 0])
    found = FAMILIES["tails"].columns(source, NAMES, samples=20, seeds=[1, 2, 3])
    for values_of in found.values():
        assert values_of.isnan().tolist() == [True, True, False]
