"""How post-training scaled the singular values: entries of the singular value scaling matrix of T eq. 4, float64, batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cpt_lab.spectra.measures import Spectrum

PRINCIPAL_PERCENT = 90  # of the singular values, from the largest: the others are small and scale anyhow (T table 3)


class Spectra(NamedTuple):
    """The spectra of the same matrices in two checkpoints."""

    tuned: Spectrum
    base: Spectrum


class Scalings(NamedTuple):
    """The factors of a batch of matrices."""

    factors: Tensor  # (..., n): s_tuned,i / s_base,i; nan where the base's value is no more than rounding
    principal: Tensor  # (..., k): the first k = ceil(0.9 n) of them


def scalings(spectra: Spectra) -> Scalings:
    """s_tuned,i / s_base,i (T eq. 4) for every place i, and those of the largest 90 % of the values."""
    base = spectra.base.significant
    factors = torch.where(base > 0, spectra.tuned.values / base, torch.nan)
    return Scalings(factors, factors[..., : -(-PRINCIPAL_PERCENT * factors.shape[-1] // 100)])


def mean(factors: Tensor) -> Tensor:
    """The mean of the factors that there are; nan for a base of zeros."""
    return factors.nanmean(-1)


def std(factors: Tensor) -> Tensor:
    """Their standard deviation, ddof 0, 0 for a single one: how far from one factor for all (T table 3)."""
    return (factors - factors.nanmean(-1, keepdim=True)).square().nanmean(-1).sqrt()


MEASURES: dict[str, Callable[[Scalings], Tensor]] = {
    "svsm_mean": lambda found: mean(found.principal),
    "svsm_std": lambda found: std(found.principal),
}
