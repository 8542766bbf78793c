"""Maximum likelihood in the families p(y) = exp(-a y - b g(y)) / Z(a, b) on y >= 0, with b >= 0; float64, batched.

With y = log(x / x_min), b = 0 is the power law x^-(1 + a). g = y^2 / 2 is the lognormal from x_min on, g = e^y - 1 the power law with an
exponential cut-off. A log likelihood is concave in (a, b), so that Newton's method finds the one maximum. Integrals are Gauss-Legendre
sums; the incomplete gamma functions that they stand for are not in torch, and lose all digits at the exponents that occur.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

NODES = 200
NEGLIGIBLE = 45.0  # a density is cut where its logarithm is so far below its peak
STEPS = 60  # Newton takes about ten; halved steps count too. All are done: a batch must not depend on its members
BOUNDARY_SHARE = 0.1  # of b is left by a step that would make it negative
FIRST_SHARE = 0.1  # of 1 / mean(g) is the b that the search starts from


class Tilted(Protocol):
    """What one family is: its g, and when the best of it is the power law."""

    smallest_a: float

    def g(self, y: Tensor) -> Tensor: ...

    def end(self, a: Tensor, b: Tensor) -> Tensor:
        """A y beyond which the density (b > 0) is negligible, not much larger than need be."""
        ...

    def excess(self, mean: Tensor) -> Tensor:
        """E[g] under the power law whose mean of y is this; where the sample's is no smaller b = 0 is the best."""
        ...


class Gaussian:
    """g = y^2 / 2: y is normal with mean -a / b and variance 1 / b, cut off below 0."""

    smallest_a = -torch.inf

    def g(self, y: Tensor) -> Tensor:
        return y.square() / 2

    def end(self, a: Tensor, b: Tensor) -> Tensor:
        slope = a.clamp(min=0)
        return (-a / b).clamp(min=0) + 2 * NEGLIGIBLE / (slope + (slope.square() + 2 * NEGLIGIBLE * b).sqrt())

    def excess(self, mean: Tensor) -> Tensor:
        return mean.square()


class CutOff:
    """g = e^y - 1: x has the density x^-(1 + a) e^(-c x), c = b / x_min; a >= 0, below which it would rise before it falls."""

    smallest_a = 0.0

    def g(self, y: Tensor) -> Tensor:
        return y.expm1()

    def end(self, a: Tensor, b: Tensor) -> Tensor:
        # From the peak, log(-a / b) or 0, the logarithm of the density falls by c (e^t - 1 - t) or more, c = max(-a, b). That is above
        # c t^2 / 2, and above c (e^t - 1) / 2 from t = 1.2565 on. From a peak at 0 it falls by (a + b) t or more.
        curvature = torch.maximum(-a, b)
        falls = torch.minimum((2 * NEGLIGIBLE / curvature).sqrt(), (2 * NEGLIGIBLE / curvature).log1p().clamp(min=1.2565))
        falls = torch.where(a < 0, falls, (NEGLIGIBLE / b).log1p())
        return (-a / b).clamp(min=1).log() + torch.minimum(falls, NEGLIGIBLE / (a + b).clamp(min=0))

    def excess(self, mean: Tensor) -> Tensor:
        return torch.where(mean < 1, mean / (1 - mean), torch.inf)


class _Place(NamedTuple):
    """(a, b) with the mean log likelihood there and Newton's step, (batch,) each."""

    a: Tensor
    b: Tensor
    likelihood: Tensor
    step_a: Tensor
    step_b: Tensor
    log_norm: Tensor


def log_likelihoods(y: Tensor, there: Tensor, family: Tilted) -> Tensor:
    """(batch, k) log p of each y under the member of the family that fits a row best; `there` says which entries are of the sample."""
    count = there.sum(-1)
    excess = family.g(y) * there
    means = (y * there).sum(-1) / count, excess.sum(-1) / count
    best = _best(means, family, free=torch.ones_like(count).bool())
    outside = best.a < family.smallest_a
    if bool(outside.any()):  # concave: then the best within lies on the edge
        edge = _best(means, family, free=~outside)
        best = _Place(*(torch.where(outside, there_, here) for there_, here in zip(edge, best, strict=True)))
    tilted = -best.a[:, None] * y - best.b[:, None] * family.g(y) - best.log_norm[:, None]
    return torch.where((means[1] < family.excess(means[0]))[:, None], tilted, power_law(y, there))


def power_law(y: Tensor, there: Tensor) -> Tensor:
    """(batch, k) log p of each y under the best of all families with b = 0, where y is exponential: -log(mean) - y / mean."""
    mean = (y * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    return -mean.log() - y / mean


def _best(means: tuple[Tensor, Tensor], family: Tilted, *, free: Tensor) -> _Place:
    """The maximum; where a is not free it stays at the smallest that is allowed."""
    start_a = torch.where(free, 1 / means[0], max(family.smallest_a, 0.0))
    place = _at(start_a, FIRST_SHARE / means[1], means, family, free)
    size = torch.ones_like(start_a)
    for _ in range(STEPS):
        b = torch.maximum(place.b + size * place.step_b, BOUNDARY_SHARE * place.b)
        candidate = _at(place.a + size * place.step_a, b, means, family, free)
        better = candidate.likelihood > place.likelihood
        place = _Place(*(torch.where(better, new, old) for new, old in zip(candidate, place, strict=True)))
        size = torch.where(better, 1.0, size / 2)
    return place


def _at(a: Tensor, b: Tensor, means: tuple[Tensor, Tensor], family: Tilted, free: Tensor) -> _Place:
    nodes, weights = (part.to(a) for part in _quadrature())
    end = family.end(a, b)[:, None]
    y = end * nodes
    g = family.g(y)
    exponents = -a[:, None] * y - b[:, None] * g
    peak = exponents.amax(-1, keepdim=True)
    density = (exponents - peak).exp() * weights
    norm = density.sum(-1, keepdim=True)
    share = density / norm
    mean_y, mean_g = (share * y).sum(-1, keepdim=True), (share * g).sum(-1, keepdim=True)
    of_y, of_g, of_both = (
        (share * one * other).sum(-1) for one, other in ((y - mean_y, y - mean_y), (g - mean_g, g - mean_g), (y - mean_y, g - mean_g))
    )
    slope_a, slope_b = mean_y[:, 0] - means[0], mean_g[:, 0] - means[1]
    determinant = of_y * of_g - of_both.square()
    step_a = torch.where(free, (of_g * slope_a - of_both * slope_b) / determinant, 0.0)
    step_b = torch.where(free, (of_y * slope_b - of_both * slope_a) / determinant, slope_b / of_g)
    log_norm = (norm[:, 0] * end[:, 0]).log() + peak[:, 0]
    return _Place(a, b, -a * means[0] - b * means[1] - log_norm, step_a, step_b, log_norm)


@cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Nodes in (0, 1) and weights."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
