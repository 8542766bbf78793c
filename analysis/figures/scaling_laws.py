"""What changes with the number of layers: the range of exponents, its ends, the place of the peak, and how slowly the wave travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Dots, Drawing, Line, Look, Panel, Reference, Values
from analysis.spectral import measure_text
from analysis.watched import Group, Run
from cpt_lab import lifecycle
from cpt_lab.lifecycle import AlphaGradient, PowerLaw, Wave

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "over the number of layers: the range of the exponent with its power law, its extremes, its peak, and steps per layer of the wave"
PAPERS = ("L figure 22",)
NEEDS = (
    "watched training runs from random weights of at least two depths (experiments lifecycle_d8 lifecycle_d12 lifecycle_d16 in one command)"
)
RANK = "stable_rank"
POINTS, MARKS = 60, 5  # of a drawn curve; on a logarithmic axis


@dataclass(frozen=True)
class Growth:
    """The exponents of runs from random weights at the end of training, and the law of their range over the number of layers."""

    groups: tuple[Group, ...]
    roles: tuple[str, ...]
    gradients: tuple[AlphaGradient, ...]  # one per run
    fit: PowerLaw

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs]


def growth(results: Results, settings: Mapping[str, Any]) -> Growth:
    """What the figure's first panel shows; ValueError if all runs from random weights are of one depth."""
    found = tuple(group for group in watched.groups(results) if group.is_random_start)
    runs = [run for group in found for run in group.runs]
    depths = {run.depth for run in runs}
    if len(depths) < 2:
        raise ValueError(f"study {results.name!r} has watched runs from random weights of {len(depths)} depth: scaling needs {NEEDS}")
    measure = str(settings["alpha"])
    roles = watched.chosen(settings["roles"], found, measure)
    gradients = tuple(lifecycle.alpha_gradient(run.read(measure), roles, window=int(settings["window"])) for run in runs)
    return Growth(found, roles, gradients, lifecycle.depth_scaling(gradients))


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """Four panels, a point per run that starts from random weights; ValueError if all are of one depth."""
    grown, measure = growth(results, settings), str(settings["alpha"])
    found, roles, runs, gradients, fit = grown.groups, grown.roles, grown.runs, grown.gradients, grown.fit
    waves = [lifecycle.wave(run.read(RANK), roles, window=int(settings["window"])) for run in runs]
    depths = sorted({run.depth for run in runs})
    ticks = tuple((float(depth), str(depth)) for depth in depths)
    axis, law = Axis("layers", ticks=ticks), Axis("layers", scale="log", ticks=ticks)
    panels = (
        Panel(_range(fit), "range of the exponent", law, _logarithmic(f"largest minus smallest {measure_text(measure)}", fit.y)),
        Panel(_extremes(runs, gradients), "extremes", axis, Axis(measure_text(measure))),
        Panel(_peaks(runs, gradients), "place of the peak", axis, Axis("depth of the peak", "%", limits=(-5, 105))),
        Panel(_slowness(runs, waves), "wave", axis, Axis("steps per layer (inverse velocity)")),
    )
    title = "What grows with depth?"
    return Drawing("scaling_laws", title, _caption(found, roles, fit), (panels[:2], panels[2:]), panel_size=(3.9, 2.9))


def fit_text(fit: PowerLaw) -> str:
    """`L^0.26 (95 % 0.2 to 0.32), R2 = 0.99`."""
    interval = f" (95 % {fit.low:.2g} to {fit.high:.2g})" if np.isfinite(fit.low) else " (two points: no interval)"
    return f"L^{fit.exponent:.2g}{interval}, R2 = {fit.r_squared:.2f}"


def _range(fit: PowerLaw) -> tuple[Dots | Line, ...]:
    """The law turned about the middle of the points by its exponent's interval."""
    x = np.geomspace(fit.x.min(), fit.x.max(), POINTS)
    y = fit.at(x)
    middle = float(np.exp(np.log(fit.x).mean()))
    turned = [y * (x / middle) ** (exponent - fit.exponent) for exponent in (fit.low, fit.high)]
    known = np.isfinite(fit.low)
    low, high = (np.minimum(*turned), np.maximum(*turned)) if known else (None, None)
    look = palette.OTHERS[3]
    return (Dots("a run", fit.x, fit.y, look), Line(fit_text(fit), x, y, replace(look, marker="", dash="dashed"), low=low, high=high))


def _logarithmic(label: str, values: Values) -> Axis:
    """With a few round numbers between the smallest and the largest, where powers of ten are too far apart."""
    places = np.unique([float(f"{value:.2g}") for value in np.geomspace(values.min(), values.max(), MARKS)])
    return Axis(label, scale="log", ticks=tuple((float(place), f"{place:g}") for place in places))


def _extremes(runs: Sequence[Run], gradients: Sequence[AlphaGradient]) -> tuple[Dots, ...]:
    high, low = ([float(of(one.profile)) for one in gradients] for of in (np.nanmax, np.nanmin))
    return (
        Dots("largest", _depths(runs), np.array(high), Look("#C6212B", marker="^")),
        Dots("smallest", _depths(runs), np.array(low), Look("#214FC6", marker="v")),
    )


def _peaks(runs: Sequence[Run], gradients: Sequence[AlphaGradient]) -> tuple[Dots, ...]:
    """Filled where the profile is an inverted U."""
    place = np.array([100 * one.peak_depth for one in gradients])
    bent = np.array([one.is_inverted_u for one in gradients])
    look = palette.OTHERS[1]
    return tuple(
        Dots(name, _depths(runs)[which], place[which], replace(look, marker="o", filled=filled))
        for name, which, filled in (("inverted U", bent, True), ("no inverted U", ~bent, False))
        if which.any()
    )


def _slowness(runs: Sequence[Run], waves: Sequence[Wave]) -> tuple[Dots | Reference, ...]:
    values = np.array([wave.steps_per_layer for wave in waves])
    half = np.array([(wave.high - wave.low) / 2 for wave in waves])
    dots = Dots("steps per layer, 95 %", _beside(_depths(runs)), values, replace(palette.OTHERS[2], marker="o"), y_bars=np.nan_to_num(half))
    return (Reference("", y=0.0), dots)


def _depths(runs: Sequence[Run]) -> Values:
    return np.array([run.depth for run in runs], dtype=np.float64)


def _beside(places: Values) -> Values:
    """Runs of one depth side by side, so that their bars can be told apart."""
    turns = [int((places[:index] == place).sum()) for index, place in enumerate(places)]
    return places + 0.12 * np.array(turns)


def _caption(found: Sequence[Group], roles: Sequence[str], fit: PowerLaw) -> str:
    return (
        f"{watched.roles_text(roles)}; runs from random weights, a point each. Range: {fit_text(fit)}, least squares of logarithms over "
        f"{len(fit.x)} runs of {len(np.unique(fit.x))} depths; band: the exponent's interval. Bars of the wave: 95 % intervals of the line "
        f"through the layers' arrivals. {watched.sources(found, bands=False)}"
    )
