"""Singular values and vectors as edits of weights need them, and the matrices that are made of them.

W is a matrix of m x n with r = min(m, n), W = X_0 diag(s) X_1^T: X_0 (m x r) holds the vectors of axis 0, X_1 (n x r) those of axis 1, in
the order of s_1 >= ... >= s_r >= 0. Matrices are finite; all is float64 but truncations, see there.
T is He and Cao, Understanding Post-Training Structural Changes in Large Language Models.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

SMALLEST_GRAM_SHARE = 1e-5  # s_r / s_1 below which the Gram matrix has lost digits: relative errors reach 1e-6 there
NARROW = 128  # columns
BLOCKS = 20  # of singular vectors, in which truncations are summed up: ladders in steps of 5 % pay for each vector once
ROWS_AT_ONCE = 512

Signs = Literal["aligned", "own"]


class ShortSide(NamedTuple):
    """What one factorisation is worth keeping: the vectors of the long side follow from W and these (`factors`)."""

    singular: Tensor  # (r,), descending
    vectors: Tensor  # (r, r), of the short axis of W; of axis 1 if W is square

    @property
    def nbytes(self) -> int:
        """What keeping it takes."""
        return self.singular.nbytes + self.vectors.nbytes


class Factors(NamedTuple):
    """W = vectors[0] diag(singular) vectors[1]^T."""

    singular: Tensor  # (r,), descending
    vectors: tuple[Tensor, Tensor]  # (m, r), (n, r)

    def matrix(self) -> Tensor:
        """The matrix that these are factors of."""
        return (self.vectors[0] * self.singular) @ self.vectors[1].mT


class Truncations:
    """Best approximations of one delta D = tuned - base: D_k = D V_k V_k^T, rank after rank, from one decomposition (P eq. 19).

    D_k is a sum over blocks of singular vectors, whose ends depend on r alone, and a remainder. With `keep` the sum over the blocks stays,
    so that a higher rank adds what is new to it; a lower one starts again. Bits do not depend on what was asked for before.
    """

    def __init__(self, tuned: Tensor, base: Tensor) -> None:
        # A product in float32 is wrong by 1e-7 of the delta, itself a small part of the matrix; float64 would take twice the time and
        # memory at every point of a sweep.
        dtype = torch.promote_types(tuned.dtype, torch.float32)
        vectors = short_side(tuned.double() - base.double()).vectors
        rank = len(vectors)
        self._rows = vectors.mT.to(dtype).contiguous()
        self._ends = [rank * block // BLOCKS for block in range(BLOCKS + 1)]
        self._size = (max(tuned.shape), rank)
        self._sum: Tensor | None = None
        self._summed = 0  # blocks
        self.keep = False

    @property
    def nbytes(self) -> int:
        """What keeping the singular vectors takes."""
        return self._rows.nbytes

    @property
    def sum_nbytes(self) -> int:
        """What keeping a sum takes beside them."""
        return math.prod(self._size) * self._rows.itemsize

    def of_rank(self, rank: int, tuned: Tensor, base: Tensor) -> Tensor:
        """base + D_k, of the shape and dtype of the two matrices, which are those the factors were made of."""
        whole = bisect_right(self._ends, rank) - 1
        known, self._sum = self._sum, None  # an exception below must not leave half a sum
        if known is None or self._summed > whole:
            known, self._summed = torch.zeros_like(_tall(tuned), dtype=self._rows.dtype), 0  # in memory it lies as the matrix does
        new = torch.empty_like(tuned)
        matrices = (known, _tall(new), _tall(tuned), _tall(base))
        scratch = [torch.empty_like(known[:ROWS_AT_ONCE]) for _ in range(2)]
        for row in range(0, len(known), ROWS_AT_ONCE):  # rows are independent of each other, and what is worked on stays in the cache
            total, result, end, start = (matrix[row : row + ROWS_AT_ONCE] for matrix in matrices)
            below, delta = (rows[: len(total)].copy_(stored) for rows, stored in zip(scratch, (start, end), strict=True))
            delta.sub_(below)
            for first, last in pairwise(self._ends[self._summed : whole + 1]):
                self._add(total, delta, first, last, out=total)
            result.copy_(below.add_(self._add(total, delta, self._ends[whole], rank)))
        if self.keep:
            self._sum, self._summed = known, whole
        return new

    def _add(self, total: Tensor, delta: Tensor, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """total + D V V^T with the singular vectors `first` to `last`."""
        if first == last:
            return total
        rows = self._rows[first:last]
        return torch.addmm(total, delta @ rows.mT, rows, out=out)


def singular_values(matrices: Tensor) -> Tensor:
    """All min(m, n) singular values of matrices (..., m, n), descending, in float64.

    They are the roots of the eigenvalues of the float64 Gram matrix of the short side. Where the smallest is below 1e-5 of the largest the
    root has lost digits: those matrices are done again by QR and the singular values of R.
    """
    tall = matrices.double()
    tall = tall.mT if tall.shape[-2] < tall.shape[-1] else tall
    values: Tensor = torch.linalg.eigvalsh(gram(tall)).clamp(min=0).sqrt().flip(-1)
    lost = has_lost_digits(values)
    if bool(lost.any()):
        values[lost] = torch.linalg.svdvals(torch.linalg.qr(tall[lost], mode="r").R)
    return values


def short_side(matrix: Tensor) -> ShortSide:
    """Singular values and vectors of the short axis, float64.

    They are eigenvalues (roots) and eigenvectors of the float64 Gram matrix of the short axis. Where s_r < 1e-5 s_1 the small ones have
    lost their digits: then QR, and the decomposition of R.
    """
    tall = _tall(matrix.double())
    squares, vectors = torch.linalg.eigh(gram(tall))
    found = ShortSide(squares.clamp(min=0).sqrt().flip(-1), vectors.flip(-1))
    if has_lost_digits(found.singular):
        _, singular, rows = torch.linalg.svd(torch.linalg.qr(tall, mode="r").R)
        found = ShortSide(singular, rows.mT)
    return found


def gram(matrices: Tensor) -> Tensor:
    """W^T W of matrices (..., m, n), of which a CPU works out one half only: numpy sees that the factors are one, torch does not.

    Narrow ones are faster whole.
    """
    if not matrices.is_cpu or matrices.shape[-1] <= NARROW:
        return matrices.mT @ matrices
    array = matrices.numpy()
    return torch.from_numpy(array.mT @ array)


def has_lost_digits(singular: Tensor) -> Tensor:
    """Whether the smallest of singular values (..., n) that come from a Gram matrix is too small for it."""
    return singular[..., -1] < SMALLEST_GRAM_SHARE * singular[..., 0]


def factors(matrix: Tensor, short: ShortSide) -> Factors:
    """The whole decomposition of a matrix whose `short_side` is known; the vectors of both axes are orthonormal, whatever its rank.

    The long side is W V diag(1 / s); where s_r < 1e-5 s_1 it is the Q of W V, which stays orthonormal for s_i down to zero.
    """
    tall = _tall(matrix.double())
    images = tall @ short.vectors
    if has_lost_digits(short.singular) or not bool(short.singular[-1] > 0):
        orthonormal, triangle = torch.linalg.qr(images)
        long = orthonormal * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    else:
        long = images / short.singular
    return Factors(short.singular, (long, short.vectors) if _is_tall(matrix) else (short.vectors, long))


def rank_kept(percent: int, rows: int, columns: int) -> int:
    """k = floor(percent x r / 100) in integers (P eq. 19: the product with a float share is off by one for some)."""
    return percent * min(rows, columns) // 100


def with_singular_values(matrix: Tensor, short: ShortSide, singular: Tensor) -> Tensor:
    """X_0 diag(singular) X_1^T: the singular vectors of a matrix, whose `short_side` is given, with other values (P eq. 14, T eq. 9)."""
    return factors(matrix, short)._replace(singular=singular).matrix()


def rotated(post: Factors, base: Factors, *, axis: int, restore: bool, signs: Signs = "aligned") -> Tensor:
    """The post-trained matrix with the vectors X_a of one axis from the base, as they are or rotated as those of the other axis b were.

    Ablation: X_a = A_a. Restoration: X_a = A_a Q with Q = A_b^T P_b, where A and P are the vectors of base and post. Singular values and
    X_b stay those of post (T eq. 10, 11, 15, 16). Only ablation depends on the signs of pairs of singular vectors, which a decomposition
    leaves open and T does not give: see `signs_of`.
    """
    other = 1 - axis
    if restore:
        replaced = base.vectors[axis] @ (base.vectors[other].mT @ post.vectors[other])
    else:
        replaced = base.vectors[axis] * signs_of(post.vectors[other], base.vectors[other], signs)
    vectors = (replaced, post.vectors[1]) if axis == 0 else (post.vectors[0], replaced)
    return Factors(post.singular, vectors).matrix()


def signs_of(post: Tensor, base: Tensor, signs: Signs) -> Tensor:
    """+1 or -1 for each column: what the base's pair of singular vectors is multiplied with before one of them is exchanged.

    `aligned` makes the scalar product of the columns of post and base positive, so that only the rotation is taken away; `own` gives each
    column of either the sign that makes its largest entry positive, as if the two matrices did not know of each other.
    """
    agree = (post * base).sum(0) if signs == "aligned" else _largest_entry(post) * _largest_entry(base)
    return torch.where(agree < 0, -1.0, 1.0)


def _largest_entry(columns: Tensor) -> Tensor:
    return columns.gather(0, columns.abs().argmax(0, keepdim=True)).squeeze(0)


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[0] >= matrix.shape[1]


def _tall(matrix: Tensor) -> Tensor:
    return matrix if _is_tall(matrix) else matrix.mT
