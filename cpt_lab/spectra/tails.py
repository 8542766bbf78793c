"""Is a tail a power law? The bootstrap p-value and the likelihood ratios of Clauset, Shalizi and Newman (2009), float64, batched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cpt_lab.spectra import tilted
from cpt_lab.spectra.fits import MOST_ELEMENTS, Distance, PowerLaw, power_law
from cpt_lab.spectra.measures import Spectrum


class Ratio(NamedTuple):
    """Power law against another distribution on the same tail."""

    log_ratio: Tensor  # (...,) sum of log likelihoods, power law minus the other: above 0 for the power law
    p: Tensor  # (...,) chance of a ratio so far from 0 were neither better


class Tails(NamedTuple):
    """All that is asked of the tails of a batch; nan where no power law can be fitted."""

    p_value: Tensor  # (...,) small: not a power law (Clauset et al. rule it out at 0.1)
    exponential: Ratio
    lognormal: Ratio
    truncated: Ratio


def fit(spectrum: Spectrum, *, samples: int, seeds: Sequence[int], min_tail: int | None = None, ks: Distance = "clauset") -> Tails:
    """Every test on the power laws that `fits.fit` finds with the same options; `seeds` has one seed of the bootstrap per matrix."""
    law = power_law(spectrum.eigenvalues, min_tail, ks=ks)
    p_value = p_values(spectrum.eigenvalues, law, samples=samples, seeds=seeds, min_tail=min_tail, ks=ks)
    return Tails(p_value, *likelihood_ratios(spectrum.eigenvalues, law))


def p_values(
    eigenvalues: Tensor, law: PowerLaw, *, samples: int, seeds: Sequence[int], min_tail: int | None = None, ks: Distance = "clauset"
) -> Tensor:
    """(...,) the share of synthetic spectra that are further from their power law than the eigenvalues (..., n) from theirs (section 4.1).

    A synthetic spectrum has as many values, each from the fitted law with probability tail / rank, else one of those below x_min at random;
    its own x_min is sought like that of the original. The standard error of a share p is sqrt(p (1 - p) / samples).
    """
    rows = eigenvalues.reshape(-1, eigenvalues.shape[-1])
    if len(seeds) != len(rows):
        raise ValueError(f"{len(seeds)} seeds for {len(rows)} spectra: give one for each")
    laws = [PowerLaw(*parts) for parts in zip(*(part.reshape(-1).unbind() for part in law), strict=True)]
    found = [_p_value(*one, samples, min_tail, ks) for one in zip(rows, laws, seeds, strict=True)]
    return torch.stack(found).reshape(law.alpha.shape) if found else torch.empty_like(law.alpha)


def likelihood_ratios(eigenvalues: Tensor, law: PowerLaw) -> tuple[Ratio, Ratio, Ratio]:
    """Against the exponential, the lognormal and the power law with exponential cut-off (exponent at least 1), each from x_min on.

    All are fitted by maximum likelihood to y = log(lambda / x_min). The p of the first two is that of Vuong's test of distributions of
    which neither contains the other, erfc(|R| / sqrt(2 k var)), var the variance of the k terms of R; the last one contains the power
    law, so that -2 R is chi-square with one degree of freedom. Where the best of a family is the power law itself R is 0 and p 1.
    """
    flat = PowerLaw(*(part.reshape(-1) for part in law))
    fitted = torch.isfinite(flat.alpha)
    values = eigenvalues.reshape(-1, eigenvalues.shape[-1])[fitted]
    there = torch.arange(values.shape[-1], device=values.device) < flat.tail[fitted, None]
    y = torch.where(there, values / flat.x_min[fitted, None], 1.0).log()
    own = tilted.power_law(y, there)
    compared = (
        _vuong(own - _exponential(y, there), there),
        _vuong(own - tilted.log_likelihoods(y, there, tilted.Gaussian()), there),
        _nested(own - tilted.log_likelihoods(y, there, tilted.CutOff()), there),
    )
    exponential, lognormal, truncated = (Ratio(*(_spread(part, fitted, law.alpha) for part in ratio)) for ratio in compared)
    return exponential, lognormal, truncated


def synthesised(eigenvalues: Tensor, law: PowerLaw, *, samples: int, generator: torch.Generator) -> Tensor:
    """(samples, rank) spectra, descending, that are a power law above x_min and like the eigenvalues (n,) below it."""
    rank, tail = int(law.rank), int(law.tail)
    chosen, uniform = torch.rand(2, samples, rank, dtype=eigenvalues.dtype, generator=generator).to(eigenvalues.device)
    above = law.x_min * (-(-uniform).log1p() / (law.alpha - 1)).exp()
    if tail < rank:
        below = eigenvalues[tail:rank][(uniform * (rank - tail)).long()]
        above = torch.where(chosen < tail / rank, above, below)
    spectra: Tensor = above.sort(-1, descending=True).values
    return spectra


MEASURES: dict[str, Callable[[Tails], Tensor]] = {
    "pl_p_value": lambda tails: tails.p_value,
    "pl_lr_exponential": lambda tails: tails.exponential.log_ratio,
    "pl_lr_exponential_p": lambda tails: tails.exponential.p,
    "pl_lr_lognormal": lambda tails: tails.lognormal.log_ratio,
    "pl_lr_lognormal_p": lambda tails: tails.lognormal.p,
    "pl_lr_truncated": lambda tails: tails.truncated.log_ratio,
    "pl_lr_truncated_p": lambda tails: tails.truncated.p,
}


def _p_value(eigenvalues: Tensor, law: PowerLaw, seed: int, samples: int, min_tail: int | None, ks: Distance) -> Tensor:
    if not bool(torch.isfinite(law.ks)):
        return law.ks
    generator = torch.Generator().manual_seed(seed)
    step = max(1, MOST_ELEMENTS // int(law.rank))
    sizes = [min(step, samples - start) for start in range(0, samples, step)]
    synthetic = (synthesised(eigenvalues, law, samples=size, generator=generator) for size in sizes)
    further = sum(int((power_law(one, min_tail, ks=ks).ks >= law.ks).sum()) for one in synthetic)
    return torch.full_like(law.ks, further / samples)


def _exponential(y: Tensor, there: Tensor) -> Tensor:
    """log density of y where lambda is exponential from x_min on: log(r) + y - r (e^y - 1), r = 1 / mean(e^y - 1)."""
    excess = y.expm1()
    rate = there.sum(-1, keepdim=True) / (excess * there).sum(-1, keepdim=True)
    return rate.log() + y - rate * excess


def _vuong(terms: Tensor, there: Tensor) -> Ratio:
    count = there.sum(-1)
    ratio = (terms * there).sum(-1)
    variance = ((terms - (ratio / count)[:, None]).square() * there).sum(-1) / count
    p = torch.erfc(ratio.abs() / (2 * count * variance).sqrt())
    return Ratio(ratio, torch.where(ratio == 0, 1.0, p))


def _nested(terms: Tensor, there: Tensor) -> Ratio:
    ratio = (terms * there).sum(-1).clamp(max=0)
    return Ratio(ratio, torch.erfc((-ratio).sqrt()))


def _spread(values: Tensor, fitted: Tensor, like: Tensor) -> Tensor:
    """The values of the matrices with a fit, nan for the others."""
    whole = torch.full(fitted.shape, math.nan, dtype=values.dtype, device=values.device)
    whole[fitted] = values
    return whole.reshape(like.shape)
