"""How the singular vectors of two matrices agree: pure functions, float64, batched over all leading dimensions.

Blocks are oriented (..., residual, head): their rows are of the residual stream (d_model), their columns of the head, or of all heads or
MLP units where the matrix is whole. A block has k = min(residual, head) singular vectors on either side, by falling singular value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cpt_lab.factors import SMALLEST_GRAM_SHARE
from cpt_lab.spectra.rotation import Overlaps, deviation


class Vectors(NamedTuple):
    """The singular vectors of a batch of blocks; columns without a singular value are nan, on both sides."""

    residual: Tensor  # (..., residual_size, k)
    head: Tensor  # (..., head_size, k)


@dataclass(frozen=True)
class Agreement:
    """What is kept of |A^T B| of the singular vectors of base and tuned, on either side (P eq. 7), and of how the sides turned together."""

    residual_max: Tensor  # (..., k) the best agreement of each vector of the base with one of tuned, 0 to 1; nan where there is none
    residual_diagonal: Tensor  # (..., k) that with the vector of the same place
    head_max: Tensor  # (..., k)
    head_diagonal: Tensor  # (..., k)
    deviation: Tensor  # (...,) NF of `rotation.deviation`
    residual_size: int
    head_size: int

    def tensors(self) -> dict[str, Tensor]:
        """All but the sizes, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def agreement(base: Vectors, tuned: Vectors) -> Agreement:
    """The agreement of two batches of blocks of equal shape."""
    overlaps = Overlaps(*(one.mT @ other for one, other in zip(base, tuned, strict=True)))
    return of_overlaps(overlaps, sizes=(base.residual.shape[-2], base.head.shape[-2]))


def of_overlaps(overlaps: Overlaps, *, sizes: tuple[int, int]) -> Agreement:
    """The agreement of blocks of these sizes, residual and head, whose vectors overlap so."""
    residual, head = (overlap.abs() for overlap in overlaps)
    sides = (row_maximum(residual), diagonal(residual), row_maximum(head), diagonal(head))
    return Agreement(*sides, deviation(overlaps), *sizes)


def pair(base: Tensor, tuned: Tensor) -> Agreement:
    """The agreement of two batches of blocks (..., residual, head)."""
    return agreement(Vectors(*_vectors(base)), Vectors(*_vectors(tuned)))


def row_maximum(similarity: Tensor) -> Tensor:
    """(..., k) the largest entry of each row of |A^T B| (..., k, k) that is a number; nan for a row without any."""
    best = similarity.nan_to_num(-1.0).amax(-1)
    return torch.where(best >= 0, best, torch.nan)


def diagonal(similarity: Tensor) -> Tensor:
    """(..., k) the entries of vectors of the same place."""
    return similarity.diagonal(dim1=-2, dim2=-1)


def noise_floor(count: int, size: int) -> float:
    """About what the row maximum of `count` random directions in a space of so many dimensions is: sqrt(2 ln count / size), at most 1."""
    return min(1.0, math.sqrt(2 * math.log(count) / size))


MEASURES: dict[str, Callable[[Agreement], Tensor]] = {  # means over the vectors that there are; nan where there are none
    "agreement_residual_max": lambda agreement: agreement.residual_max.nanmean(-1),
    "agreement_residual_diagonal": lambda agreement: agreement.residual_diagonal.nanmean(-1),
    "agreement_residual_noise": lambda agreement: _constant(agreement.residual_max, agreement.residual_size),
    "agreement_head_max": lambda agreement: agreement.head_max.nanmean(-1),
    "agreement_head_diagonal": lambda agreement: agreement.head_diagonal.nanmean(-1),
    "agreement_head_noise": lambda agreement: _constant(agreement.head_max, agreement.head_size),
}


def _constant(best: Tensor, size: int) -> Tensor:
    return torch.full_like(best[..., 0], noise_floor(best.shape[-1], size))


def _vectors(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Singular vectors (..., residual, k) and (..., head, k) by falling singular value; nan where that is zero to rounding.

    Those of the short side are eigenvectors of its float64 Gram matrix, those of the long side follow by U = W V / s. Where the smallest
    singular value is below 1e-5 of the largest that loses digits: such blocks get a full decomposition.
    """
    wide = blocks.shape[-2] < blocks.shape[-1]
    tall = blocks.double().mT if wide else blocks.double()
    squares, short = torch.linalg.eigh(tall.mT @ tall)
    values, short = squares.clamp(min=0).sqrt().flip(-1), short.flip(-1)
    long = tall @ short / values[..., None, :]
    lost = values[..., -1] < SMALLEST_GRAM_SHARE * values[..., 0]
    if bool(lost.any()):
        long[lost], values[lost], transposed = torch.linalg.svd(tall[lost], full_matrices=False)
        short[lost] = transposed.mT
    zero = (values <= tall.shape[-2] * torch.finfo(torch.float64).eps * values[..., :1])[..., None, :]
    long, short = long.masked_fill(zero, torch.nan), short.masked_fill(zero, torch.nan)
    return (short, long) if wide else (long, short)
