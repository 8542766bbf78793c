"""How the singular vectors of two matrices agree: pure functions, float64, batched over all leading dimensions.

Blocks are oriented (..., residual, head): their rows are of the residual stream (d_model), their columns of the head, or of all heads or
MLP units where the matrix is whole. Agreements have a row per singular vector of the base and a column per one of tuned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cpt_lab.factors import SMALLEST_GRAM_SHARE


@dataclass(frozen=True)
class Pair:
    """|A^T B| of the singular vectors of two blocks on either side (P eq. 7), and the dimension of the space of each."""

    residual: Tensor  # (..., k, k)
    head: Tensor  # (..., k, k)
    residual_size: int
    head_size: int


def pair(base: Tensor, tuned: Tensor) -> Pair:
    """The agreements of two batches of blocks (..., residual, head); rows and columns of vectors without a singular value are nan."""
    left, right = _vectors(base), _vectors(tuned)
    residual, head = ((one.mT @ other).abs() for one, other in zip(left, right, strict=True))
    return Pair(residual, head, *base.shape[-2:])


def row_maximum(agreement: Tensor) -> Tensor:
    """The mean over the base's vectors of each one's best agreement with a vector of tuned, from 0 to 1; nan for zeros."""
    best = agreement.nan_to_num(-1.0).amax(-1)
    return _mean(torch.where(best >= 0, best, torch.nan))


def diagonal(agreement: Tensor) -> Tensor:
    """The mean agreement of vectors of the same rank, from 0 to 1; nan for zeros."""
    return _mean(agreement.diagonal(dim1=-2, dim2=-1))


def noise_floor(count: int, size: int) -> float:
    """About what the row maximum of `count` random directions in a space of so many dimensions is: sqrt(2 ln count / size), at most 1."""
    return min(1.0, math.sqrt(2 * math.log(count) / size))


PairMeasure = Callable[[Pair], Tensor]

PAIR_MEASURES: dict[str, PairMeasure] = {
    "agreement_residual_max": lambda pair: row_maximum(pair.residual),
    "agreement_residual_diagonal": lambda pair: diagonal(pair.residual),
    "agreement_residual_noise": lambda pair: _constant(pair.residual, pair.residual_size),
    "agreement_head_max": lambda pair: row_maximum(pair.head),
    "agreement_head_diagonal": lambda pair: diagonal(pair.head),
    "agreement_head_noise": lambda pair: _constant(pair.head, pair.head_size),
}


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


def _mean(values: Tensor) -> Tensor:
    return values.nanmean(-1)


def _constant(agreement: Tensor, size: int) -> Tensor:
    return torch.full(agreement.shape[:-2], noise_floor(agreement.shape[-1], size), dtype=agreement.dtype)
