"""Power-law fits of eigenvalue spectra (Clauset, Shalizi and Newman 2009), float64, batched over all leading dimensions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FEWEST_TAIL = 10  # without a minimum, tails of two or three values win: they are straight by chance
FEWEST_EVER = 5
TAIL_SHARE = 10  # and at least one in so many eigenvalues belongs to the tail
ROUNDING = 1e-11  # eigenvalues that differ by less are equal: a constant spectrum has no exponent
MOST_ELEMENTS = 2**22  # of a temporary, 32 MB: whole matrices of large models are fitted a few cut-offs at a time


class PowerLaw(NamedTuple):
    """Density ~ lambda^-alpha from x_min on; every field has one value per matrix, all nan where nothing can be fitted."""

    alpha: Tensor
    ks: Tensor  # largest distance between the distribution functions of tail and fit
    x_min: Tensor
    tail: Tensor  # number of eigenvalues from x_min on
    stderr: Tensor  # of alpha: (alpha - 1) / sqrt(tail)


def power_law(eigenvalues: Tensor, min_tail: int | None = None) -> PowerLaw:
    """The fit with the x_min of the smallest Kolmogorov-Smirnov distance, among the eigenvalues (..., n) themselves, descending.

    With k eigenvalues from x_min on, alpha = 1 + k / sum_i log(lambda_i / x_min) and, as in the implementations of Clauset et al., the
    distance is max_i |F(lambda_i) - i / k| over i = 0 ... k - 1 counted from x_min: one side of each step of the empirical distribution,
    where P eq. 13 would take both. Zeros stand for what lies below the numerical rank and are left out. `min_tail` is the smallest k; None
    is the larger of 10 and a tenth of the eigenvalues left. ValueError for one below 5.
    """
    if min_tail is not None and min_tail < FEWEST_EVER:
        raise ValueError(f"min_tail is {min_tail}, and a tail of fewer than {FEWEST_EVER} values says nothing: give at least {FEWEST_EVER}")
    values, rows = eigenvalues.reshape(-1, eigenvalues.shape[-1]), eigenvalues.shape[:-1]
    ranks = (values > 0).sum(-1)
    fewest = torch.clamp(-(-ranks // TAIL_SHARE), min=FEWEST_TAIL) if min_tail is None else torch.full_like(ranks, min_tail)
    alphas = _exponents(values)
    distances = torch.full_like(values, torch.inf)
    step = max(1, MOST_ELEMENTS // max(1, values.numel()))
    for start in range(0, values.shape[-1], step):
        cutoffs = slice(start, start + step)
        distances[:, cutoffs] = _distances(values, alphas, cutoffs)
    distances[~_allowed(values, alphas, fewest)] = torch.inf
    ks, best = distances.min(-1)
    fitted = torch.isfinite(ks)
    found = [alphas.gather(-1, best[:, None])[:, 0], ks, values.gather(-1, best[:, None])[:, 0], best.double() + 1]
    alpha, ks, x_min, tail = (torch.where(fitted, part, torch.nan).reshape(rows) for part in found)
    return PowerLaw(alpha, ks, x_min, tail, (alpha - 1) / tail.sqrt())


def _exponents(values: Tensor) -> Tensor:
    """alpha for every cut-off: entry k - 1 takes the k largest values; inf where they are all equal, nan below the rank."""
    logs = values.log()
    counts = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype)
    excess = logs.cumsum(-1) - counts * logs
    return 1 + counts / excess.masked_fill(excess < ROUNDING * counts, 0.0)


def _distances(values: Tensor, alphas: Tensor, cutoffs: slice) -> Tensor:
    """The distance for each of these cut-offs; the survival function of the fit is (lambda / x_min)^(1 - alpha)."""
    x_min, alpha = values[:, cutoffs, None], alphas[:, cutoffs, None]
    places = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype)
    counts = places[cutoffs, None]
    survival = (values[:, None, :] / x_min) ** (1 - alpha)
    return torch.where(places <= counts, (survival - places / counts).abs(), 0.0).amax(-1)


def _allowed(values: Tensor, alphas: Tensor, fewest: Tensor) -> Tensor:
    """Cut-offs with a tail that is long enough and takes all values equal to its smallest."""
    counts = torch.arange(1, values.shape[-1] + 1)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1), value=-1.0)
    return (counts >= fewest[:, None]) & (values > 0) & (following < values) & torch.isfinite(alphas)
