"""Singular values of many matrices, and how the singular vectors of pairs of them agree: each matrix by itself, several at a time.

On a CPU one thread decomposes a matrix from a copy of its own, so that its bits depend neither on the number of threads nor on what is
asked beside it. Other devices take equal matrices in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cpt_lab.factors import factors, has_lost_digits, short_side, singular_values
from cpt_lab.spectra import pairs
from cpt_lab.spectra.rotation import Overlaps

MOST_ELEMENTS = 2**28  # of a batch on a device, 2 GB in float64
ALIGNMENT = 64  # bytes, of the start of a new tensor
DRAWN_BITS = 32  # for each entry of a matrix that is permuted

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
        return singular_values(_aligned(permuted(*job)).to(matrices.device))

    return torch.stack([*in_threads(decomposed, zip(matrices, seeds, strict=True), threads)])


def permuted(matrix: Tensor, seed: int) -> Tensor:
    """The matrix, in float32 on the CPU, with its entries in a random order that depends on seed and size alone.

    The bits of each entry are sorted below 32 random ones: half the time of shuffling them, which misses the cache at every step. Of the
    pairs of entries 1 in 2^32 draws equal bits and falls in the order of its values.
    """
    entries = matrix.to("cpu", torch.float32).contiguous().numpy().reshape(-1).view(np.uint32)
    draws = np.random.SFC64(seed).random_raw(-(-len(entries) // 2)).view(np.uint32)[: len(entries)]
    keys = draws.astype(np.uint64)
    keys <<= np.uint64(DRAWN_BITS)
    keys |= entries
    keys.sort()
    return torch.from_numpy(keys.astype(np.uint32).view(np.float32)).reshape(matrix.shape)


def agreements(base: Tensor, tuned: Tensor, *, threads: int = 1) -> pairs.Agreement:
    """How the singular vectors of two batches of blocks (b, residual, head) agree, block by block."""
    if not is_threaded(base):
        batches = zip(*(torch.split(blocks, _batch(blocks)) for blocks in (base, tuned)), strict=True)
        return _together([pairs.pair(*both) for both in batches], torch.cat)
    return _together([*in_threads(_agreement, zip(base, tuned, strict=True), threads)], torch.stack)


def overlaps(base: Tensor, tuned: Tensor) -> Overlaps:
    """Those of two blocks (residual, head), without the vectors of the long side where the spectra allow it.

    With the short sides' decompositions A^T A = V_a S_a^2 V_a^T and B^T B = V_b S_b^2 V_b^T of tall A and B, U_a^T U_b is
    S_a^-1 V_a^T (A^T B) V_b S_b^-1, to 1e-16 s_1^2 / s_n^2. Where singular values below 1e-5 of the largest would make that more than
    1e-6 the vectors themselves are made.
    """
    ours, theirs = short_side(base), short_side(tuned)
    if has_lost_digits(ours.singular) or has_lost_digits(theirs.singular):
        both = zip(factors(base, ours).vectors, factors(tuned, theirs).vectors, strict=True)
        residual, head = (left.mT @ right for left, right in both)
    else:
        wide = base.shape[0] < base.shape[1]
        product = base @ tuned.mT if wide else base.mT @ tuned
        short = ours.vectors.mT @ theirs.vectors
        long = (ours.vectors.mT @ product @ theirs.vectors) / ours.singular[:, None] / theirs.singular
        residual, head = (short, long) if wide else (long, short)
    there = _present(ours.singular, base)[:, None] & _present(theirs.singular, tuned)
    return Overlaps(residual.where(there, torch.nan), head.where(there, torch.nan))


def vectors(block: Tensor) -> pairs.Vectors:
    """The singular vectors of a block (residual, head), float64."""
    short = short_side(_aligned(block))
    present = _present(short.singular, block)
    return pairs.Vectors(*(side.where(present, torch.nan) for side in factors(_aligned(block), short).vectors))


def is_threaded(matrices: Tensor) -> bool:
    """Whether matrices lie where each is decomposed by a thread."""
    return matrices.is_cpu


def _agreement(blocks: tuple[Tensor, Tensor]) -> pairs.Agreement:
    base, tuned = map(_aligned, blocks)
    return pairs.of_overlaps(overlaps(base, tuned), sizes=(base.shape[0], base.shape[1]))


def _present(singular: Tensor, matrix: Tensor) -> Tensor:
    """Which singular values are more than the rounding of float64."""
    return singular > max(matrix.shape) * torch.finfo(torch.float64).eps * singular[0]


def _aligned(matrix: Tensor) -> Tensor:
    """The matrix in float64 by rows, aligned as every new tensor is: the last bits of a product depend on how its factors lie in memory."""
    if matrix.dtype == torch.float64 and matrix.is_contiguous() and matrix.data_ptr() % ALIGNMENT == 0:
        return matrix
    return torch.empty(matrix.shape, dtype=torch.float64).copy_(matrix)


def _batch(matrices: Tensor) -> int:
    return max(1, MOST_ELEMENTS // matrices[0].numel())


def _together(found: Sequence[pairs.Agreement], join: Callable[[list[Tensor]], Tensor]) -> pairs.Agreement:
    first = found[0]
    joined = {name: join([one.tensors()[name] for one in found]) for name in first.tensors()}
    return pairs.Agreement(**joined, residual_size=first.residual_size, head_size=first.head_size)


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
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
