"""Spectral measures as pure functions of singular values, float64, batched over all leading dimensions.

A matrix has m rows and n columns with m >= n (transposed if need be) and singular values s_1 >= ... >= s_n; `values` has them last.
The zero matrix has norms, ranks and entropy 0, and no power law (nan).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cpt_lab.factors import singular_values
from cpt_lab.spectra import fits


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a batch of equal matrices, and what else a measure may depend on."""

    values: Tensor  # (..., n), descending
    rows: int  # m, the long side
    columns: int  # n, the short side
    eps: float  # machine epsilon of the dtype that the matrix is stored in

    @cached_property
    def power_law(self) -> fits.PowerLaw:
        """The fit of the eigenvalues s_i^2 / m of the correlation matrix W^T W / m (P A.4) that are more than rounding.

        Rounding a matrix to eps adds noise with singular values up to about eps times the root mean square of its own: what is smaller is
        left out. (The tolerance of `hard_rank` would leave out every value of a bf16 matrix with more than 128 rows.)
        """
        mean_square = self.values.square().mean(-1, keepdim=True)
        rounding = torch.maximum(self.eps * mean_square.sqrt(), self.rows * torch.finfo(torch.float64).eps * self.values[..., :1])
        return fits.power_law((self.values.square() / self.rows).masked_fill(self.values <= rounding, 0.0))


def spectrum(matrices: Tensor, stored: torch.dtype) -> Spectrum:
    """The spectrum of matrices (..., rows, columns) that came out of a checkpoint of dtype `stored`."""
    columns, rows = sorted(matrices.shape[-2:])
    return Spectrum(singular_values(matrices), rows, columns, torch.finfo(stored).eps)


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


def hard_rank(values: Tensor, tolerance: float) -> Tensor:
    """The number of s_i > tolerance * s_1, as a float64."""
    return (values > tolerance * values.amax(-1, keepdim=True)).double().sum(-1)


Measure = Callable[[Spectrum], Tensor]

MEASURES: dict[str, Measure] = {
    "frobenius_norm": lambda spectrum: frobenius_norm(spectrum.values),
    "spectral_norm": lambda spectrum: spectral_norm(spectrum.values),
    "stable_rank": lambda spectrum: stable_rank(spectrum.values),
    "effective_rank": lambda spectrum: effective_rank(spectrum.values),
    "spectral_entropy": lambda spectrum: spectral_entropy(spectrum.values),
    "hard_rank": lambda spectrum: hard_rank(spectrum.values, spectrum.rows * spectrum.eps),
    "pl_alpha": lambda spectrum: spectrum.power_law.alpha,
    "pl_ks": lambda spectrum: spectrum.power_law.ks,
    "pl_xmin": lambda spectrum: spectrum.power_law.x_min,
    "pl_tail": lambda spectrum: spectrum.power_law.tail,
    "pl_stderr": lambda spectrum: spectrum.power_law.stderr,
}


def _shares(values: Tensor, whole: Tensor) -> Tensor:
    """values / whole, zeros where the whole is zero."""
    return values / torch.where(whole > 0, whole, 1.0).unsqueeze(-1)
