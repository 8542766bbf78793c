"""Power-law fits of eigenvalue spectra (Clauset, Shalizi and Newman 2009), float64, batched over all leading dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cpt_lab.spectra.measures import Spectrum

Distance = Literal["clauset", "two_sided"]

FEWEST_TAIL = 10  # without a minimum, tails of two or three values win: they are straight by chance
FEWEST_EVER = 5
TAIL_SHARE = 10  # and at least one in so many eigenvalues belongs to the tail
ROUNDING = 1e-11  # eigenvalues that differ by less are equal: a constant spectrum has no exponent
MOST_ELEMENTS = 2**16  # of a temporary, half a MB, which stays in the cache: many spectra or cut-offs are fitted a few at a time
SCREENING = 12  # places of a tail where each cut-off is tried first
TYPICAL = (1.5, 5.0)  # exponents of trained networks (P A.4)
BELIEVABLE = 8.0  # above, a sample with an exponential tail does as well


class PowerLaw(NamedTuple):
    """Density ~ lambda^-alpha from x_min on; every field has one value per matrix, all but the last nan where nothing can be fitted."""

    alpha: Tensor
    ks: Tensor  # largest distance between the distribution functions of tail and fit
    x_min: Tensor
    tail: Tensor  # number of eigenvalues from x_min on
    stderr: Tensor  # of alpha: (alpha - 1) / sqrt(tail)
    rank: Tensor  # number of eigenvalues above 0


class Fitted(NamedTuple):
    """Spectra with their power laws."""

    spectrum: Spectrum
    law: PowerLaw


def fit(spectrum: Spectrum, *, min_tail: int | None = None, ks: Distance = "clauset") -> Fitted:
    """The power laws of the eigenvalues that are more than rounding."""
    return Fitted(spectrum, power_law(spectrum.eigenvalues, min_tail, ks=ks))


def power_law(eigenvalues: Tensor, min_tail: int | None = None, *, ks: Distance = "clauset") -> PowerLaw:
    """The fit with the x_min of the smallest Kolmogorov-Smirnov distance, among the eigenvalues (..., n) themselves, descending.

    With k eigenvalues from x_min on, alpha = 1 + k / sum_i log(lambda_i / x_min). As in the implementations of Clauset et al. the distance
    is max_i |F(lambda_i) - j_i / k|, j_i of the k values being smaller than lambda_i: one side of each step of the empirical distribution.
    `two_sided` takes the other one too, with j_i of them at most lambda_i, for the supremum of P eq. 13. Zeros stand for what lies below
    the numerical rank and are left out. `min_tail` is the smallest k; None is the larger of 10 and a tenth of the eigenvalues left.
    ValueError for one below 5.
    """
    if min_tail is not None and min_tail < FEWEST_EVER:
        raise ValueError(f"min_tail is {min_tail}, and a tail of fewer than {FEWEST_EVER} values says nothing: give at least {FEWEST_EVER}")
    values, rows = eigenvalues.reshape(-1, eigenvalues.shape[-1]), eigenvalues.shape[:-1]
    ranks = (values > 0).sum(-1)
    fewest = torch.clamp(-(-ranks // TAIL_SHARE), min=FEWEST_TAIL) if min_tail is None else torch.full_like(ranks, min_tail)
    scan = _scan(values)
    alphas = scan.alphas
    smallest, best = _closest(scan, _allowed(values, alphas, fewest), ks)
    fitted = torch.isfinite(smallest)
    found = [alphas.gather(-1, best[:, None])[:, 0], smallest, values.gather(-1, best[:, None])[:, 0], best.double() + 1]
    alpha, distance, x_min, tail = (torch.where(fitted, part, torch.nan).reshape(rows) for part in found)
    return PowerLaw(alpha, distance, x_min, tail, (alpha - 1) / tail.sqrt(), ranks.double().reshape(rows))


def suspect(law: PowerLaw) -> Tensor:
    """0 for a fit to go by; 1 for an alpha outside (1.5, 5), which P calls typical; 2 where it says nothing: above 8, or tail below 10."""
    typical = (law.alpha > TYPICAL[0]) & (law.alpha < TYPICAL[1])
    hopeless = (law.alpha > BELIEVABLE) | (law.tail < FEWEST_TAIL)
    degree = torch.where(hopeless, 2.0, torch.where(typical, 0.0, 1.0)).to(law.alpha.dtype)
    return torch.where(law.alpha.isnan(), torch.nan, degree)


def weighted_alpha(found: Fitted) -> Tensor:
    """alpha log10(lambda_1), lambda_1 = s_1^2 / m (Martin, Peng and Mahoney 2021): unlike alpha it depends on the scale of the matrix."""
    return found.law.alpha * found.spectrum.eigenvalues[..., 0].log10()


MEASURES: dict[str, Callable[[Fitted], Tensor]] = {
    "pl_alpha": lambda found: found.law.alpha,
    "pl_ks": lambda found: found.law.ks,
    "pl_xmin": lambda found: found.law.x_min,
    "pl_tail": lambda found: found.law.tail,
    "pl_stderr": lambda found: found.law.stderr,
    "pl_rank": lambda found: found.law.rank,
    "pl_suspect": lambda found: suspect(found.law),
    "weighted_alpha": weighted_alpha,
}


class _Scan(NamedTuple):
    """What every cut-off of a batch of spectra is tried with, (batch, n) each."""

    logs: Tensor
    alphas: Tensor  # entry k - 1 takes the k largest values; inf where they are equal, nan below the rank
    as_large: Tensor  # number of values of at least this one
    larger: Tensor  # number of values above it


def _scan(values: Tensor) -> _Scan:
    logs = values.log()
    counts = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    excess = logs.cumsum(-1) - counts * logs
    alphas = 1 + counts / excess.masked_fill(excess < ROUNDING * counts, 0.0)
    ends = torch.nn.functional.pad(values[:, 1:] < values[:, :-1], (0, 1), value=True)  # of a run of equal values
    as_large = torch.where(ends, counts, torch.inf).flip(-1).cummin(-1).values.flip(-1)
    starts = torch.nn.functional.pad(ends[:, :-1], (1, 0), value=True)
    return _Scan(logs, alphas, as_large, torch.where(starts, counts - 1, -1.0).cummax(-1).values)


def _allowed(values: Tensor, alphas: Tensor, fewest: Tensor) -> Tensor:
    """Cut-offs with a tail that is long enough and takes all values equal to its smallest."""
    counts = torch.arange(1, values.shape[-1] + 1, device=values.device)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1), value=-1.0)
    return (counts >= fewest[:, None]) & (values > 0) & (following < values) & torch.isfinite(alphas)


def _closest(scan: _Scan, allowed: Tensor, ks: Distance) -> tuple[Tensor, Tensor]:
    """The smallest distance of each spectrum and its cut-off, the longest tail among equals; inf where no cut-off is allowed.

    The distance at a few places of a tail is a lower bound of that at all of them: cut-offs whose bound is above a distance that is
    known need not be looked at, and there are few others. The result is that of trying all.
    """
    rows, cutoffs = allowed.nonzero(as_tuple=True)
    bounds = torch.full_like(scan.logs, torch.inf)
    bounds[rows, cutoffs] = _distances(scan, rows, cutoffs, places=SCREENING, ks=ks)
    likely = bounds.argmin(-1)
    some = allowed.any(-1).nonzero()[:, 0]
    known = torch.full_like(bounds[:, 0], -torch.inf)
    known[some] = _distances(scan, some, likely[some], places=None, ks=ks)
    rows, cutoffs = (allowed & (bounds <= known[:, None])).nonzero(as_tuple=True)
    distances = torch.full_like(bounds, torch.inf)
    distances[rows, cutoffs] = _distances(scan, rows, cutoffs, places=None, ks=ks)
    best = distances.shape[-1] - 1 - distances.flip(-1).argmin(-1)
    return distances.gather(-1, best[:, None])[:, 0], best


def _distances(scan: _Scan, rows: Tensor, cutoffs: Tensor, *, places: int | None, ks: Distance) -> Tensor:
    """The distance of spectrum rows[i] cut off at cutoffs[i], for every i, at so many places of the tail or at all."""
    step = max(1, MOST_ELEMENTS // (places or scan.logs.shape[-1]))
    parts = [slice(start, start + step) for start in range(0, len(rows), step)]
    return torch.cat([scan.logs.new_empty(0), *(_distances_at(scan, rows[part], cutoffs[part], places, ks) for part in parts)])


def _distances_at(scan: _Scan, rows: Tensor, cutoffs: Tensor, places: int | None, ks: Distance) -> Tensor:
    """One part of them. The survival function of the fit is (lambda / x_min)^(1 - alpha), that of the k values of a tail falls by 1 / k."""
    last = cutoffs[:, None]
    at = torch.arange(places or int(cutoffs.max()) + 1, device=rows.device).expand(len(rows), -1)
    at = at if places is None else last * at // (places - 1)

    def taken(part: Tensor) -> Tensor:
        return part[rows, : at.shape[-1]] if places is None else part[rows[:, None], at]

    logs = taken(scan.logs) - scan.logs[rows, cutoffs][:, None]
    survival = (logs * (1 - scan.alphas[rows, cutoffs])[:, None]).exp()
    counts = last + 1
    distances = (survival - taken(scan.as_large) / counts).abs()
    if ks == "two_sided":
        distances = torch.maximum(distances, (survival - taken(scan.larger) / counts).abs())
    return torch.where(at <= last, distances, 0.0).amax(-1)
