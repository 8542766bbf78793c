"""Does a layer's exponent say how much the model needs it? Its rank correlation with what is lost without the layer (L figures 9, 10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cpt_lab.lifecycle.alphas import spearman
from cpt_lab.lifecycle.trajectories import Floats

SAMPLES = 9999  # permutations; all of them where there are fewer
MOST_EXACT = 7  # layers: 5040 permutations


@dataclass(frozen=True)
class Importance:
    """A point per layer, and how the two are related over the layers inside the model."""

    alpha: Floats  # (l,)
    loss: Floats  # (l,) what is lost without the layer
    core: npt.NDArray[np.bool_]  # (l,) the layers that count: not those at the ends
    rho: float  # Spearman's correlation over the core
    p: float  # two-sided, by permutations of the core
    rho_of_all: float


def importance(alpha: Sequence[float] | Floats, loss: Sequence[float] | Floats, *, ends: int = 1, seed: int = 0) -> Importance:
    """The correlation without `ends` layers on either side, which L calls structural outliers: the model needs them whatever their spectra.

    ValueError for two lists of different lengths, or if fewer than three layers are left.
    """
    alphas, losses = np.asarray(alpha, dtype=float), np.asarray(loss, dtype=float)
    if alphas.shape != losses.shape or alphas.ndim != 1:
        raise ValueError(f"importance takes an exponent and a loss per layer, not {alphas.shape} and {losses.shape}")
    if len(alphas) - 2 * ends < 3 or ends < 0:
        raise ValueError(f"{len(alphas)} layers without {ends} at either end are fewer than three: give smaller ends")
    core = np.zeros(len(alphas), dtype=bool)
    core[ends : len(alphas) - ends] = True
    core &= np.isfinite(alphas) & np.isfinite(losses)
    rho = spearman(alphas[core], losses[core])
    return Importance(alphas, losses, core, rho, _p(alphas[core], losses[core], rho, seed), spearman(alphas, losses))


def _p(x: Floats, y: Floats, rho: float, seed: int) -> float:
    """The share of permutations with a correlation of at least this size: all of few layers, else so many by chance and this one."""
    from itertools import permutations

    from scipy import stats

    if math.isnan(rho):
        return math.nan
    first, second = (stats.rankdata(values) for values in (x, y))
    first, second = ((ranks - ranks.mean()) / ranks.std() for ranks in (first, second))
    generator = np.random.default_rng(seed)
    exact = len(x) <= MOST_EXACT
    orders = np.array(list(permutations(range(len(x))))) if exact else generator.permuted(np.tile(np.arange(len(x)), (SAMPLES, 1)), axis=1)
    extreme = int((np.abs(second[orders] @ first / len(x)) >= abs(rho) - 1e-12).sum())
    return extreme / len(orders) if exact else (extreme + 1) / (len(orders) + 1)
