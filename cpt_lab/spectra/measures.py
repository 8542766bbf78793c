"""Norms, ranks and shapes of spectra as pure functions of singular values, float64, batched over all leading dimensions.

A matrix has m rows and n columns with m >= n (transposed if need be) and singular values s_1 >= ... >= s_n; `values` has them last.
The zero matrix has norms, ranks and entropy 0; what needs two values, or a slope, is nan where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROUNDING_SHARE = 1 / math.sqrt(12)  # numbers are rounded by at most eps / 2 of themselves, evenly: by so much in the root mean square


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a batch of equal matrices, and what else a measure may depend on."""

    values: Tensor  # (..., n) float64, descending
    rows: int  # m, the long side
    columns: int  # n, the short side
    eps: float  # machine epsilon of the dtype that the matrix is stored in
    std: Tensor  # (...,) of the entries, ddof 0
    mean: Tensor  # (...,) of the entries
    null: Tensor | None = None  # (..., n) singular values of the matrix with its entries permuted
    # (...,) root mean square of the numbers as stored, whose rounding the matrix carries: of a delta sqrt(rms_1^2 + rms_2^2) of the two
    # checkpoints. None: the matrix is stored itself.
    stored: Tensor | None = None

    @cached_property
    def rounding(self) -> Tensor:
        """(...,) the singular value below which nothing is known: sigma (sqrt(m) + sqrt(n)), sigma = eps / sqrt(12) x rms as stored.

        That is the spectral norm of rounding errors that are independent of each other; what float64 itself loses is the least.
        """
        rms = self.stored if self.stored is not None else frobenius_norm(self.values) / math.sqrt(self.rows * self.columns)
        errors = ROUNDING_SHARE * self.eps * rms * (math.sqrt(self.rows) + math.sqrt(self.columns))
        return torch.maximum(errors, self.rows * torch.finfo(torch.float64).eps * spectral_norm(self.values))

    @cached_property
    def significant(self) -> Tensor:
        """(..., n) the singular values with zeros for those that are no more than rounding."""
        return self.values.masked_fill(self.values <= self.rounding.unsqueeze(-1), 0.0)

    @cached_property
    def eigenvalues(self) -> Tensor:
        """(..., n) lambda_i = s_i^2 / m of the correlation matrix W^T W / m (P A.4), descending, 0 for what is no more than rounding."""
        return self.significant.square() / self.rows


def frobenius_norm(values: Tensor) -> Tensor:
    """||W||_F = sqrt(sum_i s_i^2) (P eq. 3)."""
    return values.square().sum(-1).sqrt()


def spectral_norm(values: Tensor) -> Tensor:
    """||W||_2 = s_1 (P eq. 4)."""
    return values.amax(-1)


def stable_rank(values: Tensor) -> Tensor:
    """||W||_F^2 / ||W||_2^2 (P eq. 5), between 1 and the rank."""
    return _shares(values, spectral_norm(values)).square().sum(-1)


def spectral_entropy(values: Tensor) -> Tensor:
    """H = -sum_i p_i log p_i with p_i = s_i / sum_j s_j and 0 log 0 = 0, in nats (P eq. 6)."""
    entropy: Tensor = torch.special.entr(_shares(values, values.sum(-1))).sum(-1)
    return entropy


def effective_rank(values: Tensor) -> Tensor:
    """exp(H) of Roy and Vetterli (2007), between 1 and the rank; P eq. 6 gives the name to H itself, our `spectral_entropy`."""
    return torch.where(values.amax(-1) > 0, spectral_entropy(values).exp(), 0.0)


def hard_rank(significant: Tensor) -> Tensor:
    """The number of singular values that are more than rounding (`Spectrum.rounding`), as a float64."""
    return (significant > 0).double().sum(-1)


def spectral_gap(significant: Tensor) -> Tensor:
    """s_1 / s_2, at least 1 (L); nan where the rank is below 2."""
    if significant.shape[-1] < 2:
        return torch.full_like(significant[..., 0], torch.nan)
    first, second = significant[..., 0], significant[..., 1]
    return torch.where(second > 0, first / second, torch.nan)


def rank_decay_alpha(significant: Tensor) -> Tensor:
    """Minus the slope of log s_i on log i, least squares weighted by s_i, over the values above rounding; nan where the rank is below 2.

    It is alpha where s_i ~ i^-alpha and 0 where all are equal. L reports a `weighted alpha` of this size and does not define it.
    """
    found = significant > 0
    places = torch.arange(1, significant.shape[-1] + 1, dtype=significant.dtype, device=significant.device).log()
    logs = torch.where(found, significant, 1.0).log()
    weights = _shares(significant, significant.sum(-1))
    centred = places - (weights * places).sum(-1, keepdim=True)
    slope = (weights * centred * logs).sum(-1) / (weights * centred.square()).sum(-1)
    return torch.where(found.sum(-1) >= 2, -slope, torch.nan)


MEASURES: dict[str, Callable[[Spectrum], Tensor]] = {
    "frobenius_norm": lambda spectrum: frobenius_norm(spectrum.values),
    "spectral_norm": lambda spectrum: spectral_norm(spectrum.values),
    "stable_rank": lambda spectrum: stable_rank(spectrum.values),
    "effective_rank": lambda spectrum: effective_rank(spectrum.values),
    "spectral_entropy": lambda spectrum: spectral_entropy(spectrum.values),
    "hard_rank": lambda spectrum: hard_rank(spectrum.significant),
    "spectral_gap": lambda spectrum: spectral_gap(spectrum.significant),
    "rank_decay_alpha": lambda spectrum: rank_decay_alpha(spectrum.significant),
}


def _shares(values: Tensor, whole: Tensor) -> Tensor:
    """values / whole, zeros where the whole is zero."""
    return values / torch.where(whole > 0, whole, 1.0).unsqueeze(-1)
