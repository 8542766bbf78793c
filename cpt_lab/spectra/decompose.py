"""Singular values of many matrices, and how the singular vectors of pairs of them agree: each matrix by itself, several at a time.

On a CPU one thread decomposes a matrix from a copy of its own, so that its bits depend neither on the number of threads nor on what is
asked beside it. Other devices take equal matrices in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from cpt_lab.factors import factors, gram, has_lost_digits, short_side, singular_values
from cpt_lab.spectra import pairs
from cpt_lab.spectra.rotation import Overlaps

MOST_ELEMENTS = 2**28  # of a batch on a device, 2 GB in float64
MOST_OVERLAPS = 2**15  # that a thread works on at a time: of heads a few, so that small steps do not cost more than decompositions
FALLING = ((-1,), (-1,), (-2, -1), (-2, -1))  # what of values and overlaps to turn round, if they rise
DRAWN_BITS = 32  # for each entry of a matrix that is permuted
AT_ONCE = 2**16  # entries that it is drawn for, which stay in the cache
ALIGNMENT = 64  # bytes, of the start of a new tensor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def values(matrices: Tensor, *, threads: int = 1) -> Tensor:
    """The singular values (b, n) of matrices (b, rows, columns), descending, float64 (see `factors.singular_values`)."""
    if is_threaded(matrices):
        return torch.stack([*in_threads(lambda matrix: singular_values(_aligned(matrix)), matrices, threads)])
    return torch.cat([singular_values(batch) for batch in torch.split(matrices, _batch(matrices))])


def permuted_values(matrices: Tensor, *, seeds: Sequence[int], threads: int = 1) -> Tensor:
    """The same of every matrix with its entries permuted, by a seed for each (P A.4)."""

    def decomposed(job: tuple[Tensor, int]) -> Tensor:
        return singular_values(permuted(*job).to(matrices.device))

    return torch.stack([*in_threads(decomposed, zip(matrices, seeds, strict=True), threads)])


def permuted(matrix: Tensor, seed: int) -> Tensor:
    """The matrix on the CPU, its entries rounded to float32 and in a random order that depends on seed and size alone.

    The bits of each entry are sorted below 32 random ones: half the time of shuffling them, which misses the cache at every step. Of the
    pairs of entries 1 in 2^32 draws equal bits and falls in the order of its values.
    """
    found = torch.empty(matrix.shape, dtype=torch.float64)
    keys, generator = found.numpy().view(np.uint64), np.random.SFC64(seed)
    rows = 2 * max(1, AT_ONCE // matrix.shape[1] // 2)  # an even number of keys, as two are drawn at a time
    parts = [slice(start, start + rows) for start in range(0, len(matrix), rows)]
    for part in parts:
        entries = matrix[part].to("cpu", torch.float32).contiguous().numpy().view(np.uint32)
        keys[part] = generator.random_raw(-(-entries.size // 2)).view(np.uint32)[: entries.size].reshape(entries.shape)
        keys[part] <<= np.uint64(DRAWN_BITS)
        keys[part] |= entries
    keys.reshape(-1).sort()
    for part in parts:
        found[part] = torch.from_numpy(keys[part].astype(np.uint32).view(np.float32))
    return found


def agreements(base: Tensor, tuned: Tensor, *, threads: int = 1) -> pairs.Agreement:
    """How the singular vectors of two batches of blocks (b, residual, head) agree, block by block."""
    if is_threaded(base):
        step = max(1, min(MOST_OVERLAPS // min(base.shape[1:]) ** 2, len(base) // threads))
        return _together(in_threads(lambda both: _agreement(*both), _split(base, tuned, step), threads))
    return _together(pairs.pair(*both) for both in _split(base, tuned, _batch(base)))


def overlaps(base: Tensor, tuned: Tensor) -> Overlaps:
    """Those of two batches of blocks (b, residual, head), without the vectors of the long side where the spectra allow it.

    With the short sides' decompositions A^T A = V_a S_a^2 V_a^T and B^T B = V_b S_b^2 V_b^T of tall A and B, U_a^T U_b is
    S_a^-1 V_a^T (A^T B) V_b S_b^-1, to 1e-16 s_1^2 / s_n^2. Where singular values below 1e-5 of the largest would make that more than
    1e-6 the vectors themselves are made.
    """
    by_place = zip(*map(_on_short_sides, base, tuned), strict=True)
    ours, theirs, short, long = (torch.stack(found).flip(dims) for found, dims in zip(by_place, FALLING, strict=True))
    long = long / ours[:, :, None] / theirs[:, None, :]
    residual, head = (short, long) if base.shape[1] < base.shape[2] else (long, short)
    for place in (has_lost_digits(ours) | has_lost_digits(theirs)).nonzero()[:, 0].tolist():
        ours[place], theirs[place], residual[place], head[place] = _on_both_sides(base[place], tuned[place])
    there = _present(ours, base)[:, :, None] & _present(theirs, tuned)[:, None, :]
    return Overlaps(residual.where(there, torch.nan), head.where(there, torch.nan))


def vectors(block: Tensor) -> pairs.Vectors:
    """The singular vectors of a block (residual, head), float64."""
    short = short_side(_aligned(block))
    present = _present(short.singular, block)
    return pairs.Vectors(*(side.where(present, torch.nan) for side in factors(_aligned(block), short).vectors))


def is_threaded(matrices: Tensor) -> bool:
    """Whether matrices lie where each is decomposed by a thread."""
    return matrices.is_cpu


def _agreement(base: Tensor, tuned: Tensor) -> pairs.Agreement:
    return pairs.of_overlaps(overlaps(base, tuned), sizes=(base.shape[1], base.shape[2]))


def _on_short_sides(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two blocks, by rising singular value: both's values (k,), V_a^T V_b and V_a^T (A^T B) V_b (k, k)."""
    wide = base.shape[0] < base.shape[1]
    ours, theirs = (_aligned(block).mT if wide else _aligned(block) for block in (base, tuned))
    (squares, vectors), (their_squares, their_vectors) = (torch.linalg.eigh(gram(block)) for block in (ours, theirs))
    long = vectors.mT @ (ours.mT @ theirs) @ their_vectors
    return squares.clamp(min=0).sqrt(), their_squares.clamp(min=0).sqrt(), vectors.mT @ their_vectors, long


def _on_both_sides(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of two blocks, by falling singular value: both's values, and the overlaps of their residual and of their head sides."""
    ours, theirs = (factors(block, short_side(block)) for block in map(_aligned, (base, tuned)))
    residual, head = (left.mT @ right for left, right in zip(ours.vectors, theirs.vectors, strict=True))
    return ours.singular, theirs.singular, residual, head


def _present(singular: Tensor, matrix: Tensor) -> Tensor:
    """Which singular values (..., k) are more than the rounding of float64."""
    return singular > max(matrix.shape[-2:]) * torch.finfo(torch.float64).eps * singular[..., :1]


def _aligned(matrix: Tensor) -> Tensor:
    """The matrix in float64 by rows, aligned as every new tensor is: the last bits of a product depend on how its factors lie in memory."""
    if matrix.dtype == torch.float64 and matrix.is_contiguous() and matrix.data_ptr() % ALIGNMENT == 0:
        return matrix
    return torch.empty(matrix.shape, dtype=torch.float64).copy_(matrix)


def _batch(matrices: Tensor) -> int:
    return max(1, MOST_ELEMENTS // matrices[0].numel())


def _split(base: Tensor, tuned: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(base, step), torch.split(tuned, step), strict=True)


def _together(found: Iterable[pairs.Agreement]) -> pairs.Agreement:
    every = [*found]
    joined = {name: torch.cat([getattr(one, name) for one in every]) for name in every[0].tensors()}
    return pairs.Agreement(**joined, residual_size=every[0].residual_size, head_size=every[0].head_size)


# ------------------------------------------------------------------------------------------------------------- threads


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """The results in order; each is the work of one thread, and so is all linear algebra in it."""
    with _one_blas_thread():
        if threads == 1:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, items)


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Make this process's linear algebra use one thread for each that calls it: both numpy's and torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _blas().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


@cache  # looking for them takes as long as a head; numpy's and torch's are loaded with this module
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
