"""Trajectories with planted waves, gradients and exponents."""

from __future__ import annotations

import numpy as np

from cpt_lab.lifecycle import Trajectory
from cpt_lab.lifecycle.trajectories import Floats

STEPS = np.arange(0, 10_001, 25)
LAYERS = 12
ROLES = ("q", "k", "v", "o")
RANK = 200.0  # stable rank at initialisation


def trajectory(values: Floats, *, measure: str = "stable_rank", roles: tuple[str, ...] = ("q",), steps: Floats | None = None) -> Trajectory:
    """Values (t, l) of every role alike, or (t, l, r)."""
    times = (STEPS if steps is None else steps).astype(np.int64)
    cube = values if values.ndim == 3 else np.repeat(values[:, :, None], len(roles), axis=2)
    return Trajectory(measure, times, 1000 * times, roles, cube)


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def travelling(
    *,
    steps_per_layer: float = 150.0,
    start: float = 1000.0,
    width: float = 80.0,
    early: float = 0.5,
    late: float = 0.8,
    layers: int = LAYERS,
    noise: float = 0.0,
    seed: int = 0,
) -> Floats:
    """(t, l) stable ranks that fall by `early` (first layer) to `late` (last one) as a front passes."""
    layer = np.arange(layers)
    depth = np.linspace(early, late, layers)
    front = sigmoid((STEPS[:, None] - start - steps_per_layer * layer) / width)
    errors = noise * np.random.default_rng(seed).standard_normal((len(STEPS), layers))
    errors[0] = 0
    return RANK * (1 - depth * front) * (1 + errors)


def exponents(*, delta: float = 0.3, peak: float = 1 / 3, layers: int = LAYERS, noise: float = 0.0) -> Floats:
    """(t, l) exponents that grow apart to an inverted U of that height, by a parabola that is 1 at its peak and 0 at the farther end."""
    depth = np.linspace(0, 1, layers)
    shape = 1 - ((depth - peak) / max(peak, 1 - peak)) ** 2
    grown = 1 - np.exp(-STEPS / 2000)
    errors = noise * np.random.default_rng(1).standard_normal((len(STEPS), layers))
    return 0.2 + delta * grown[:, None] * shape + errors
