"""Pruning by exponents against pruning the last layers, model by model, and where the exponent has its peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis import captions, metrics, palette, pruned
from analysis.drawing import Axis, Bars, Dots, Drawing, Look, Panel, Reference
from analysis.pruned import LAST, Model, Strategy
from cpt_lab.specs import Ranking

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "by model: what is lost without the last layers over what is lost without those an exponent chooses, and the place of its peak"
PAPERS = ("L figure 5",)
NEEDS = "evaluations pruned by the last layers and by an exponent (experiments prune_MODEL, several in one command)"
SPECTRAL = Look("#0072B2", marker="o")


@dataclass(frozen=True)
class Compared:
    """One model: the increases at the most layers that both ways were measured with, and at a given number of them."""

    label: str
    most: int
    ratio: float  # last layers / best by exponent; nan where one of them loses nothing
    best: str
    gap: float  # worst / best over all strategies at `most`
    last_at: float  # increase at the given count
    best_at: float
    peak: float  # depth of the largest exponent, 0 to 1; nan if its scores are not there


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """Ratios, increases at a count of layers and ratios over the place of the peak; ValueError if no model has both."""
    metric = pruned.perplexity(results.points, settings["metric"])
    count = int(settings["count"])
    found = [one for model in pruned.models(results, metric) if (one := compared(results, model, count)) is not None]
    if not found:
        raise ValueError(f"study {results.name!r} has no model that was pruned by the last layers and by an exponent: it needs {NEEDS}")
    places = np.arange(len(found), dtype=np.float64)
    axis = Axis("", ticks=tuple((float(place), one.label) for place, one in enumerate(found)))
    panels = (_ratios(found, places, axis), _increases(found, places, axis, metrics.label(results.points, metric), count), _peaks(found))
    return Drawing(
        "pruning_synthesis", "Do exponents know which layers can go?", _caption(results, found, metric), (panels,), panel_size=(3.6, 3.0)
    )


def compared(results: Results, model: Model, count: int) -> Compared | None:
    """None for a model that has not both ways."""
    last = next((one for one in model.strategies if one.label == LAST), None)
    spectral = [one for one in model.strategies if one.is_spectral]
    shared = sorted(set(_known(last)) & {number for one in spectral for number in _known(one)}) if last else []
    if not shared or last is None or not np.isfinite(model.unedited):
        return None
    most = shared[-1]
    best = _best(spectral, most)
    every = [one.at(most) - model.unedited for one in model.strategies if np.isfinite(one.at(most))]
    return Compared(
        model.label,
        int(most),
        _quotient(last.at(most) - model.unedited, best.at(most) - model.unedited),
        best.label,
        _quotient(max(every), min(every)),
        last.at(count) - model.unedited,
        _best(spectral, count).at(count) - model.unedited,
        _peak(results, best.ranking),
    )


def _known(one: Strategy | None) -> list[float]:
    return [] if one is None else [float(count) for count in one.counts if count > 0 and np.isfinite(one.at(count))]


def _best(found: Sequence[Strategy], count: float) -> Strategy:
    """The one with the lowest metric there, which is a loss; the first if none was measured."""
    known = [one for one in found if np.isfinite(one.at(count))]
    return min(known, key=lambda one: one.at(count)) if known else found[0]


def _quotient(above: float, below: float) -> float:
    return above / below if above > 0 and below > 0 else float("nan")


def _peak(results: Results, ranking: Ranking | None) -> float:
    """The depth of the layer with the largest score of the finished ranking."""
    if ranking is None or not results.store.is_done(ranking):
        return float("nan")
    scores = pd.read_parquet(results.store.product(ranking) / "scores.parquet").groupby("layer")["score"].mean()
    if scores.isna().all():
        return float("nan")
    return float(scores.index.to_numpy()[int(np.nanargmax(scores))]) / max(1, ranking.shape.num_layers - 1)


def _ratios(found: Sequence[Compared], places: np.ndarray[Any, np.dtype[np.float64]], axis: Axis) -> Panel:
    bars = Bars("last layers / best by exponent", places, np.array([one.ratio for one in found]), SPECTRAL, width=0.6)
    return Panel((Reference("", y=1.0), bars), "at the most layers", axis, Axis("increase without the last layers / by exponent"))


def _increases(found: Sequence[Compared], places: np.ndarray[Any, np.dtype[np.float64]], axis: Axis, words: str, count: int) -> Panel:
    last = Bars("last layers", places, np.array([one.last_at for one in found]), pruned.LOOKS[LAST], width=0.36, offset=-0.2)
    best = Bars("best by exponent", places, np.array([one.best_at for one in found]), palette.ROLES["edited"], width=0.36, offset=0.2)
    return Panel((last, best), f"{count} layers taken out", axis, Axis(f"increase of {words}"))


def _peaks(found: Sequence[Compared]) -> Panel:
    x, y = np.array([100 * one.peak for one in found]), np.array([one.ratio for one in found])
    dots = Dots("a model", x, y, SPECTRAL, size=8.0, text=tuple(one.label for one in found), written=True, in_legend=False)
    limits = Axis("depth of the largest exponent", "%", limits=(-5, 105))
    return Panel((Reference("", y=1.0), dots), "and the place of the peak", limits, Axis("increase without the last layers / by exponent"))


def _caption(results: Results, found: Sequence[Compared], metric: str) -> str:
    said = "; ".join(
        f"{one.label}: {one.most} layers, {'no ratio' if np.isnan(one.ratio) else f'{one.ratio:.2f} times'} (by {one.best})"
        + ("" if np.isnan(one.gap) else f", worst over best strategy {one.gap:.2f}")
        for one in found
    )
    return captions.sentences(
        captions.protocol(results.points, [metric]),
        f"Increases of {metric} over the whole model. The exponent's best strategy is chosen afterwards, on the same text: {said}",
        "No ratio where nothing is lost",
        captions.missing(results.points),
    )
