"""A plain loop over the blocks of a model that does what the package diffract does: what `bench_spectra` is measured against.

One block after another: a decomposition with vectors in float32, one more of the block with its entries permuted, the fit of the
`powerlaw` package, the bulk of Marchenko and Pastur; of a pair both decompositions and the products of their vectors.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

SEED = 42

Array = npt.NDArray[np.floating[Any]]


def measured(blocks: Iterable[Array], *, threads: int) -> list[tuple[float, ...]]:
    """Norms, ranks, power law and bulk of every block, one after another."""
    with threadpool_limits(threads, user_api="blas"):
        return [_of_block(block) for block in blocks]


def _of_block(block: Array) -> tuple[float, ...]:
    values = _decomposed(block)[1]
    order = np.arange(block.size)
    np.random.default_rng(SEED).shuffle(order)
    null = _decomposed(block.reshape(-1)[order].reshape(block.shape))[1]
    long, short = max(block.shape), min(block.shape)
    shares = values / values.sum()
    norms = (float(np.sqrt((values**2).sum())), float(values[-1]), float((values**2).sum() / values[-1] ** 2))
    ranks = (float(np.exp(-(shares * np.log(shares + 1e-16)).sum())), float((values**2 > 1e-5 * values[-1] ** 2).sum()))
    return (*norms, *ranks, *_power_law(values**2 / long), *_bulk(values**2 / long, null**2 / long, float(block.std()), short / long))


def _decomposed(block: Array) -> tuple[Array, Array, Array]:
    """By rising singular value."""
    left, values, right = np.linalg.svd(block, full_matrices=False)
    order = np.argsort(values)
    return left[:, order], values[order], right.T[:, order]


def _power_law(eigenvalues: Array) -> tuple[float, float, float]:
    import powerlaw

    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        output, sys.stdout = sys.stdout, nowhere  # it reports progress
        try:
            law = powerlaw.Fit(eigenvalues, discrete=False, xmin_distribution="power_law").power_law
            return law.alpha, law.xmin, law.KS()
        finally:
            sys.stdout = output


def _bulk(eigenvalues: Array, null: Array, deviation: float, ratio: float) -> tuple[float, float]:
    """The corrected upper edge, and the share of eigenvalues above it."""
    variance = deviation**2
    inside = null <= variance * (1 + np.sqrt(ratio)) ** 2
    edge = float(null[inside].sum() / len(null) * (1 + np.sqrt(ratio)) ** 2)
    return edge, float((eigenvalues > edge).mean())


def agreements(base: Iterable[Array], tuned: Iterable[Array], *, threads: int) -> list[tuple[float, ...]]:
    """Mean row maximum and diagonal on both sides of every pair of blocks."""
    with threadpool_limits(threads, user_api="blas"):
        return [_agreement(*pair) for pair in zip(base, tuned, strict=True)]


def _agreement(base: Array, tuned: Array) -> tuple[float, ...]:
    found: list[float] = []
    for ours, theirs in zip(_decomposed(base)[::2], _decomposed(tuned)[::2], strict=True):
        overlap = np.abs(ours.T @ theirs)
        found += [float(overlap.max(1).mean()), float(np.diag(overlap).mean())]
    return tuple(found)
