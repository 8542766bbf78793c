"""Do the two sides of a matrix turn together? Functions of the singular vectors of base and tuned (T eq. 5-7), float64, batched.

T is He and Cao, Understanding Post-Training Structural Changes in Large Language Models. With W = U diag(s) V^T of base and tuned,
Q_1 = U_base^T U_tuned and Q_2 = V_base^T V_tuned turn the base's vectors into those of tuned, and I_orth = Q_1^T Q_2 is the identity where
they are equal and orthogonal. A matrix that is not square has thin factors, k = min(m, n) vectors on either side: Q on its long side is
orthogonal only if the k vectors still span the same space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cpt_lab.spectra.pairs import Agreement


class Overlaps(NamedTuple):
    """Q_1 and Q_2 (..., k, k): a row per vector of the base, a column per vector of tuned; nan for vectors without a singular value."""

    residual: Tensor
    head: Tensor


def together(overlaps: Overlaps) -> Tensor:
    """I_orth = Q_1^T Q_2 (..., k, k) (T eq. 7).

    The signs that a decomposition leaves open flip rows and columns of the same place. Rows and columns of vectors without a singular
    value are zero.
    """
    left, right = (overlap.nan_to_num(0.0) for overlap in overlaps)
    return left.mT @ right


def deviation(overlaps: Overlaps) -> Tensor:
    """NF = ||I_orth - I||_F / n (T section 4.2), n the number of vectors of tuned, I the identity on them; nan for zero matrices.

    It is 0 for a matrix and its positive multiples, 2 / sqrt(n) for negative ones, and about sqrt(2 / n) for square matrices that have
    nothing to do with each other.
    """
    there = torch.isfinite(overlaps.residual).any(-2)
    difference = together(overlaps) - torch.diag_embed(there.double())
    norm: Tensor = torch.linalg.matrix_norm(difference)
    return norm / there.sum(-1)


# The mean diagonals of T eq. 5, sim_U = |U_base^T U_tuned| and sim_V, are the diagonal agreements of `pairs.MEASURES`.
MEASURES: dict[str, Callable[[Agreement], Tensor]] = {"rotation_nf": lambda agreement: agreement.deviation}
