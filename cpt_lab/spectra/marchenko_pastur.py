"""Random-matrix models of spectra: the Marchenko-Pastur law, its edges, and what stands out of them; float64, batched.

A matrix of m x n, m >= n, q = n / m, of independent entries with standard deviation sigma has eigenvalues lambda_i = s_i^2 / m of
W^T W / m between sigma^2 (1 - sqrt(q))^2 and sigma^2 (1 + sqrt(q))^2 (P A.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cpt_lab.spectra.measures import Spectrum, frobenius_norm

Null = Literal["analytic", "permute"]


class Bulk(NamedTuple):
    """Spectra and the law of their bulk; edges, scale and outliers are 0 for the zero matrix, distances nan where the scale is 0."""

    eigenvalues: Tensor  # (..., n), descending
    sigma: Tensor  # (...,) scale of the law
    rows: int
    columns: int

    @property
    def edges(self) -> tuple[Tensor, Tensor]:
        """(...,) lower and upper edge of the law."""
        return edges(self.sigma, self.columns / self.rows)

    @property
    def outliers(self) -> Tensor:
        """(...,) the number of eigenvalues above the upper edge."""
        return (self.eigenvalues > self.edges[1].unsqueeze(-1)).double().sum(-1)


def fit(spectrum: Spectrum, *, null: Null = "analytic") -> Bulk:
    """The law whose bulk a spectrum is compared with.

    `analytic`: sigma is the standard deviation of the entries. `permute` is P's procedure: from its square eq. 12 subtracts
    (1/n) sum_{lambda_i > lambda_+} lambda_i, over the eigenvalues of the matrix with permuted entries: to use those of the matrix itself
    nothing need be permuted, as no permutation changes the deviation. ValueError without them.
    """
    variance = spectrum.std.square()
    if null == "permute":
        variance = corrected(variance, _permuted(spectrum), spectrum.columns / spectrum.rows)
    rms = frobenius_norm(spectrum.values) / math.sqrt(spectrum.rows * spectrum.columns)
    constant = spectrum.std <= spectrum.rows * torch.finfo(torch.float64).eps * rms  # a deviation of equal entries is their rounding
    # Rounding errors belong to the bulk; only where there is no bulk they would all be outliers.
    eigenvalues = torch.where(constant.unsqueeze(-1), spectrum.eigenvalues, spectrum.values.square() / spectrum.rows)
    return Bulk(eigenvalues, variance.clamp(min=0).sqrt().masked_fill(constant, 0.0), spectrum.rows, spectrum.columns)


def edges(sigma: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """lambda_- and lambda_+ = sigma^2 (1 -+ sqrt(q))^2 (P eq. 11)."""
    root = math.sqrt(ratio)
    return sigma.square() * (1 - root) ** 2, sigma.square() * (1 + root) ** 2


def corrected(variance: Tensor, null: Tensor, ratio: float) -> Tensor:
    """sigma^2 - (1/n) sum_{lambda_i > lambda_+} lambda_i over the eigenvalues (..., n) of a randomised matrix (P eq. 12)."""
    upper = edges(variance.sqrt(), ratio)[1].unsqueeze(-1)
    return variance - torch.where(null > upper, null, 0.0).mean(-1)


def density(eigenvalues: Tensor, sigma: Tensor, ratio: float) -> Tensor:
    """sqrt((lambda_+ - l)(l - lambda_-)) / (2 pi q sigma^2 l) between the edges, else 0: P eq. 10 has n / m for the 1 / q = m / n here."""
    lower, upper = (edge.unsqueeze(-1) for edge in edges(sigma, ratio))
    inside = ((upper - eigenvalues) * (eigenvalues - lower)).clamp(min=0).sqrt()
    return torch.where(inside > 0, inside / (2 * math.pi * ratio * sigma.square().unsqueeze(-1) * eigenvalues), 0.0)


def distribution(eigenvalues: Tensor, sigma: Tensor, ratio: float) -> Tensor:
    """The integral of `density` up to each eigenvalue (..., n), from 0 to 1; nan where sigma (...,) is 0.

    Put lambda = sigma^2 (1 + q + 2 sqrt(q) cos t), t from pi at the lower edge to 0 at the upper one. The density becomes that of t,
    2 sin^2 t / (pi (1 + q + 2 sqrt(q) cos t)), with the integral F = 1 - ((1 + q) t - 2 sqrt(q) sin t - (1 - q) u) / (2 pi q), where
    tan(u / 2) = tan(t / 2) (1 - sqrt(q)) / (1 + sqrt(q)).
    """
    root = math.sqrt(ratio)
    cosine = ((eigenvalues / sigma.square().unsqueeze(-1) - 1 - ratio) / (2 * root)).clamp(-1, 1)
    angle = cosine.acos()
    inner = 2 * ((1 - root) / (1 + root) * (angle / 2).tan()).atan()
    beyond = (1 + ratio) * angle - 2 * root * angle.sin() - (1 - ratio) * inner
    return torch.where(sigma.unsqueeze(-1) > 0, (1 - beyond / (2 * math.pi * ratio)).clamp(0, 1), torch.nan)


def ks(bulk: Bulk) -> Tensor:
    """sup |S - F| over the eigenvalues between the edges, both conditioned on lying there: outliers do not count as misfit of the bulk."""
    lower, upper = (edge.unsqueeze(-1) for edge in bulk.edges)
    inside = (bulk.eigenvalues >= lower) & (bulk.eigenvalues <= upper)
    return _distance(distribution(bulk.eigenvalues, bulk.sigma, bulk.columns / bulk.rows), inside)


def ks_full(bulk: Bulk) -> Tensor:
    """sup |S - F| over all eigenvalues, those outside the edges too."""
    return _distance(distribution(bulk.eigenvalues, bulk.sigma, bulk.columns / bulk.rows), torch.ones_like(bulk.eigenvalues).bool())


def tracy_widom(bulk: Bulk) -> Tensor:
    """(lambda_1 m / sigma^2 - mu) / s, where the largest eigenvalue lies on the scale of its own chance (Johnstone 2001, real case).

    mu = (sqrt(m - 1) + sqrt(n))^2 and s = (sqrt(m - 1) + sqrt(n)) (1 / sqrt(m - 1) + 1 / sqrt(n))^(1/3): for Gaussian entries the value is
    a Tracy-Widom variable of order 1, with mean -1.21, deviation 1.27 and 2.02 as its 99 % point; nan for a single row.
    """
    if bulk.rows < 2:
        return torch.full_like(bulk.sigma, torch.nan)
    roots = math.sqrt(bulk.rows - 1), math.sqrt(bulk.columns)
    scale = sum(roots) * (1 / roots[0] + 1 / roots[1]) ** (1 / 3)
    found = (bulk.eigenvalues[..., 0] * bulk.rows / bulk.sigma.square() - sum(roots) ** 2) / scale
    return torch.where(bulk.sigma > 0, found, torch.nan)


MEASURES: dict[str, Callable[[Bulk], Tensor]] = {
    "mp_edge": lambda bulk: bulk.edges[1],
    "mp_sigma": lambda bulk: bulk.sigma,
    "mp_outliers": lambda bulk: bulk.outliers,
    "mp_outlier_share": lambda bulk: bulk.outliers / bulk.columns,
    "mp_ks": ks,
    "mp_ks_full": ks_full,
    "mp_tracy_widom": tracy_widom,
}


def _permuted(spectrum: Spectrum) -> Tensor:
    """The eigenvalues of the permuted matrix."""
    if spectrum.null is None:
        raise ValueError("null is permute, and there are no singular values of the permuted matrix: give them, or null: analytic")
    return spectrum.null.square() / spectrum.rows


def _distance(model: Tensor, inside: Tensor) -> Tensor:
    """sup |S - F| over the entries `inside`, on both sides of each step of S, their empirical distribution; nan where there are none."""
    count = inside.double().sum(-1, keepdim=True)
    at_least = count - inside.double().cumsum(-1)  # descending: so many are smaller
    distances = torch.maximum((model - at_least / count).abs(), (model - (at_least + 1) / count).abs())
    return torch.where(count[..., 0] > 0, torch.where(inside, distances, 0.0).amax(-1), torch.nan)
