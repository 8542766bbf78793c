"""The depth gradient of spectral exponents: how far layers differ, where the peak is, and which roles carry it (L)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cpt_lab.lifecycle.compression import Roles, compression
from cpt_lab.lifecycle.lines import PowerLaw, power_law, slopes, smoothed
from cpt_lab.lifecycle.trajectories import Floats, Integers, Trajectory

CARRIERS, UNIFORM = ("q", "k"), ("v", "o")  # L: whose dynamics depend on depth, and whose do not
FEWEST_LAYERS = 3  # of a profile with an inside


@dataclass(frozen=True)
class AlphaGradient:
    """An exponent over depth and time."""

    steps: Integers  # (t,)
    tokens: Integers  # (t,)
    depths: Floats  # (l,) 0 to 1
    profile: Floats  # (l,) at the end: the median over the last measured steps
    span: Floats  # (t,) largest minus smallest over the layers
    slope: Floats  # (t,) over depth 0 to 1
    delta: float  # span of the profile: L's delta alpha
    curvature: float  # of a parabola through the profile; negative for an inverted U
    peak_layer: int
    peak_depth: float  # 0 to 1, by the parabola through the peak and its neighbours
    strengthening: float  # Spearman's correlation of the span with time: 1 if it only ever grows

    @property
    def is_inverted_u(self) -> bool:
        """Whether the profile is bent down and its peak is inside the model."""
        return self.curvature < 0 and 0 < self.peak_layer < len(self.profile) - 1


@dataclass(frozen=True)
class Asymmetry:
    """How much of a measure's dependence on depth is that of q and k."""

    steps: Integers  # (t,)
    tokens: Integers  # (t,)
    roles: tuple[str, ...]
    spread: Floats  # (t, r) standard deviation over the layers
    carriers: Floats  # (t,) mean spread of q and k
    uniform: Floats  # (t,) that of v and o
    ratio: Floats  # (t,) of the two: above 1 if q and k depend on depth more; nan where v and o do not at all
    final: float  # the median ratio of the last measured steps


@dataclass(frozen=True)
class Dissociation:
    """Compression and exponent side by side: the first becomes alike in all layers while the other goes apart (L figure 3)."""

    steps: Integers  # (t,)
    tokens: Integers  # (t,)
    compression: Floats  # (t, l)
    alpha: Floats  # (t, l)
    compression_slope: Floats  # (t,) over depth 0 to 1
    alpha_slope: Floats  # (t,)
    compression_spread: Floats  # (t,) standard deviation over the layers / mean; nan while nothing is compressed
    alpha_spread: Floats  # (t,)
    correlation: float  # of both over the layers at the end, Spearman's; nan where one is constant


def alpha_gradient(alpha: Trajectory, roles: Roles = "q", *, window: int = 1, last: int = 3) -> AlphaGradient:
    """The gradient of an exponent, by default that of q as L shows it, on running medians of `window` steps.

    The final profile is the median of the `last` measured steps. A layer without a fit is nan and left out.
    """
    values = smoothed(alpha.of(roles), window)
    profile = np.median(values[-last:], axis=0)
    if not np.isfinite(profile).any():
        raise ValueError(f"{alpha.measure} could be fitted in no layer at the end of this run: its matrices are too small for it")
    span = np.array([_span(row) for row in values])
    curvature, peak_layer, peak_depth = _peak(alpha.depths, profile)
    return AlphaGradient(
        alpha.steps,
        alpha.tokens,
        alpha.depths,
        profile,
        span,
        slopes(alpha.depths, values),
        delta=_span(profile),
        curvature=curvature,
        peak_layer=peak_layer,
        peak_depth=peak_depth,
        strengthening=spearman(alpha.steps.astype(float), span),
    )


def asymmetry(
    measure: Trajectory, *, relative: bool = False, carriers: Sequence[str] = CARRIERS, uniform: Sequence[str] = UNIFORM, last: int = 3
) -> Asymmetry:
    """Q/K against V/O: the spread of each role's values over the layers; `relative` compares 1 - value / first value (compression)."""
    values = 1 - measure.values / measure.values[:1] if relative else measure.values
    spread = values.std(axis=1)
    first, second = (spread[:, [_index(measure, role) for role in side]].mean(axis=1) for side in (carriers, uniform))
    ratio = np.divide(first, second, out=np.full(len(spread), math.nan), where=second > 0)
    return Asymmetry(measure.steps, measure.tokens, measure.roles, spread, first, second, ratio, final=float(np.median(ratio[-last:])))


def dissociation(stable_rank: Trajectory, alpha: Trajectory, roles: Roles = "q") -> Dissociation:
    """Compression and exponent of the same run; ValueError if they are of different steps or layers."""
    if stable_rank.values.shape[:2] != alpha.values.shape[:2] or np.any(stable_rank.steps != alpha.steps):
        raise ValueError("stable ranks and exponents are of different steps or layers: read both from one run")
    lost, exponents = compression(stable_rank, roles), alpha.of(roles)
    mean = np.abs(lost.mean(axis=1))
    return Dissociation(
        alpha.steps,
        alpha.tokens,
        lost,
        exponents,
        compression_slope=slopes(alpha.depths, lost),
        alpha_slope=slopes(alpha.depths, exponents),
        compression_spread=np.divide(lost.std(axis=1), mean, out=np.full(len(mean), math.nan), where=mean > 0),
        alpha_spread=exponents.std(axis=1) / np.abs(exponents.mean(axis=1)),
        correlation=spearman(lost[-1], exponents[-1]),
    )


def depth_scaling(gradients: Iterable[AlphaGradient]) -> PowerLaw:
    """delta alpha ~ L^exponent over runs of different depths L (L: 0.26, R^2 0.99); several seeds of a depth are points of their own."""
    found = tuple(gradients)
    return power_law(np.array([float(len(one.profile)) for one in found]), np.array([one.delta for one in found]))


def spearman(x: Floats, y: Floats) -> float:
    """Rank correlation where both are finite, ties at their mean rank; nan for fewer than two places, and where one is constant."""
    from scipy import stats

    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() < 2:
        return math.nan
    ranks = [stats.rankdata(values[there]) for values in (x, y)]
    if any(np.ptp(own) == 0 for own in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def _span(values: Floats) -> float:
    found = values[np.isfinite(values)]
    return float(np.ptp(found)) if len(found) else math.nan


def _peak(depths: Floats, profile: Floats) -> tuple[float, int, float]:
    """Second coefficient of the parabola through the profile, its highest layer, and the depth of the peak between its neighbours."""
    there = np.isfinite(profile)
    highest = int(np.nanargmax(profile))
    if there.sum() < FEWEST_LAYERS:
        return math.nan, highest, float(depths[highest])
    curvature = float(np.polyfit(depths[there], profile[there], 2)[0])
    inside = 0 < highest < len(profile) - 1 and bool(there[highest - 1 : highest + 2].all())
    if not inside:
        return curvature, highest, float(depths[highest])
    before, top, after = profile[highest - 1 : highest + 2]
    bend = before - 2 * top + after
    shift = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return curvature, highest, float(depths[highest] + shift * (depths[1] - depths[0]))


def _index(measure: Trajectory, role: str) -> int:
    if role not in measure.roles:
        raise KeyError(f"this run has no role {role}: it has {', '.join(measure.roles)}")
    return measure.roles.index(role)
