"""Compression of matrices during training: how far the stable rank fell, the wave in which it falls, and its gradient over depth (L).

L shows these in figures 1, 3, 18 and 22 and defines them in none that we have; what stands here is what its words and axes say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cpt_lab.lifecycle.lines import crossing, line, slopes, smoothed
from cpt_lab.lifecycle.trajectories import Floats, Integers, Trajectory

Roles = str | Sequence[str] | None
ARRIVED = 0.5  # of a layer's own largest compression: where a wave is steepest
STILL = 0.02  # a layer whose stable rank fell by less has seen no wave


@dataclass(frozen=True)
class CompressionGradient:
    """How the stable rank differs between the ends of the model: negative while early layers are compressed further than late ones."""

    steps: Integers  # (t,)
    tokens: Integers  # (t,)
    gradient: Floats  # (t,) stable rank of the first layers minus that of the last ones, less what it was at the start
    slope: Floats  # (t,) of the compression over depth 0 to 1: positive where late layers are compressed further
    extreme: float  # the gradient at its lowest before it reverses; its lowest at all if it does not
    extreme_step: int
    reversal_step: float  # where it changes its sign after that, for good; nan if it does not
    final: float

    @property
    def reverses(self) -> bool:
        return math.isfinite(self.reversal_step)


@dataclass(frozen=True)
class Wave:
    """A front of compression that goes through the layers."""

    arrivals: Floats  # (l,) the step at which a layer has half of its largest compression; nan for one that hardly compresses
    largest: Floats  # (l,) compression
    steps_per_layer: float  # slope of the arrivals over the layers, least squares
    stderr: float
    low: float  # of its 95 % interval
    high: float
    r_squared: float
    first: float  # the arrival at layer 0 by the line

    @property
    def velocity(self) -> float:
        """Layers per step: positive from early to late layers, inf if all are reached at once."""
        if self.steps_per_layer == 0:
            return math.inf
        return 1 / self.steps_per_layer

    @property
    def travels(self) -> bool:
        """Whether the interval of the slope leaves out 0: without that, layers are compressed in no order."""
        return self.low > 0 or self.high < 0


def compression(stable_rank: Trajectory, roles: Roles = None) -> Floats:
    """(t, l): 1 - R(t) / R(0) of the mean stable rank R of these roles, the share of it that is lost since the first measured step."""
    rank = stable_rank.of(roles)
    found: Floats = 1 - rank / rank[:1]
    return found


def compression_gradient(stable_rank: Trajectory, roles: Roles = None, *, ends: int = 1, window: int = 1) -> CompressionGradient:
    """The gradient between the first and the last `ends` layers, and its reversal, on running medians of `window` measured steps.

    The gradient that initialisation has by chance, or by unequal matrices, is taken off. A reversal is the last change from below zero to
    above after the gradient's lowest point: short returns do not count. ValueError for more layers than half of the model has.
    """
    if not 1 <= ends <= stable_rank.num_layers // 2:
        raise ValueError(f"ends={ends} layers on either side of {stable_rank.num_layers}: give 1 to {stable_rank.num_layers // 2}")
    rank = smoothed(stable_rank.of(roles), window)
    raw = rank[:, :ends].mean(axis=1) - rank[:, -ends:].mean(axis=1)
    gradient = raw - raw[0]
    lost = 1 - rank / rank[:1]
    lowest = int(np.argmin(gradient))
    return CompressionGradient(
        stable_rank.steps,
        stable_rank.tokens,
        gradient,
        slopes(stable_rank.depths, lost),
        extreme=float(gradient[lowest]),
        extreme_step=int(stable_rank.steps[lowest]),
        reversal_step=_reversal(stable_rank.steps, gradient, lowest),
        final=float(gradient[-1]),
    )


def wave(stable_rank: Trajectory, roles: Roles = None, *, level: float = ARRIVED, window: int = 1) -> Wave:
    """When the front reaches each layer, and its velocity: a line through the arrivals, so that noise of one layer counts little.

    A layer's front is where its compression first reaches `level` of its own largest, so that neither weakly nor strongly compressed
    layers are early. ValueError for a level that is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level} of the largest compression: give a share between 0 and 1")
    rank = smoothed(stable_rank.of(roles), window)
    lost = 1 - rank / rank[:1]
    largest = lost.max(axis=0)
    times = stable_rank.steps.astype(float)
    fronts = (crossing(times, own, level * most) if most > STILL else math.nan for own, most in zip(lost.T, largest, strict=True))
    arrivals = np.array([*fronts])
    found = line(np.arange(len(arrivals), dtype=float), arrivals)
    return Wave(arrivals, largest, found.slope, found.stderr, found.low, found.high, found.r_squared, found.intercept)


def _reversal(steps: Integers, gradient: Floats, lowest: int) -> float:
    """Where the gradient last comes up through zero after its lowest point, if it was below and ends above."""
    if gradient[lowest] >= 0 or gradient[-1] <= 0:
        return math.nan
    below = int(np.flatnonzero(gradient < 0)[-1])
    return crossing(steps[below : below + 2].astype(float), gradient[below : below + 2], 0.0)
