"""Straight lines and curves over depth and time, by least squares: the small change of this package."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cpt_lab.lifecycle.trajectories import Floats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x; what takes more points than there are is nan."""

    slope: float
    intercept: float
    r_squared: float
    stderr: float  # of the slope
    low: float  # of the slope's 95 % interval, by Student's t
    high: float

    def at(self, x: Floats) -> Floats:
        return self.intercept + self.slope * x


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor x^exponent, fitted as a line of logarithms (L: alpha's range over depth, exponent 0.26)."""

    x: Floats  # (n,) the points
    y: Floats  # (n,)
    exponent: float
    prefactor: float
    r_squared: float  # of the logarithms
    stderr: float  # of the exponent; nan for two points, which any line meets
    low: float  # of its 95 % interval
    high: float

    def at(self, x: Floats) -> Floats:
        return self.prefactor * np.asarray(x, dtype=float) ** self.exponent


def line(x: Floats, y: Floats) -> Line:
    """The line of least squares through the points where both are finite; all nan for fewer than two places."""
    from scipy import stats

    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 2 or np.ptp(x) == 0:
        return Line(*(math.nan,) * 6)
    off = x - x.mean()
    slope = float(off @ y / (off @ off))
    intercept = float(y.mean() - slope * x.mean())
    errors, spread = y - intercept - slope * x, y - y.mean()
    all_squares = float(spread @ spread)
    r_squared = 1 - float(errors @ errors) / all_squares if all_squares > 0 else math.nan
    if len(x) == 2:
        return Line(slope, intercept, r_squared, *(math.nan,) * 3)
    stderr = math.sqrt(float(errors @ errors) / (len(x) - 2) / float(off @ off))
    half = stderr * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2))
    return Line(slope, intercept, r_squared, stderr, slope - half, slope + half)


def power_law(x: Floats, y: Floats) -> PowerLaw:
    """y = prefactor x^exponent through two points or more; ValueError for fewer, and for what has no logarithm."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(np.unique(x)) < 2:
        raise ValueError(f"a power law takes two different x or more and as many y, not {x.shape} and {y.shape}")
    if not bool(np.all(np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0))):
        raise ValueError(f"a power law takes positive numbers, not x = {x.tolist()}, y = {y.tolist()}: leave out runs without a gradient")
    found = line(np.log(x), np.log(y))
    return PowerLaw(x, y, found.slope, math.exp(found.intercept), found.r_squared, found.stderr, found.low, found.high)


def slopes(x: Floats, y: Floats) -> Floats:
    """(t,) the slope of each row of y (t, l) over x (l,); rows with fewer than two finite values are nan."""
    there = np.isfinite(y)
    counts = np.maximum(there.sum(axis=1, keepdims=True), 1)
    off = np.where(there, x - np.where(there, x, 0.0).sum(axis=1, keepdims=True) / counts, 0.0)
    squares = (off * off).sum(axis=1)
    found: Floats = np.divide((off * np.where(there, y, 0.0)).sum(axis=1), squares, out=np.full(len(y), math.nan), where=squares > 0)
    return found


def smoothed(values: Floats, window: int) -> Floats:
    """The running median over time of values (t, ...), of so many neighbours (odd, fewer at the ends); 1 is the values themselves."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"a running median takes an odd number of values, not {window}: give 1 to smooth nothing")
    if window == 1:
        return values
    half = window // 2
    return np.stack([np.median(values[max(0, time - half) : time + half + 1], axis=0) for time in range(len(values))])


def crossing(times: Floats, values: Floats, level: float) -> float:
    """When values first reach the level from below, between two times by a straight line; nan if they never do."""
    reached = np.flatnonzero(values >= level)
    if not len(reached):
        return math.nan
    after = int(reached[0])
    if after == 0:
        return float(times[0])
    low, high = values[after - 1], values[after]
    return float(times[after - 1] + (times[after] - times[after - 1]) * (level - low) / (high - low))
