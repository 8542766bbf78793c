"""What is lost without so many layers, a bar per way to choose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import captions, metrics, pruned
from analysis.drawing import Axis, Bars, Drawing, Panel
from analysis.figures.pruning_lines import caption
from analysis.pruned import Model

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "the change of quality without one, two, ... layers: bars by how the layers are chosen"
PAPERS = ("L figure 5b", "L figure 24")
NEEDS = pruned.NEEDS
ROOM = 0.86  # of a place, for its bars


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per model; ValueError if nothing was pruned, or if the unpruned model was not evaluated."""
    metric = metrics.panels(results.points, settings["metric"])[0]
    found = [model for model in pruned.models(results, metric) if np.isfinite(model.unedited)]
    if not found:
        raise ValueError(f"study {results.name!r} has no unpruned model to compare with: add the point with intervention=none")
    factor = metrics.scale(results.points, metric)
    axis = metrics.axis(results.points, metric)
    rows = tuple((_panel(model, factor, Axis(f"change of {axis.label}", axis.unit)),) for model in found)
    title = captions.title(results, "what is lost without layers")
    return Drawing("pruning_bars", title, caption(results, found, metric), rows, panel_size=(8.0, 3.2))


def _panel(model: Model, factor: float, axis: Axis) -> Panel:
    width = ROOM / len(model.strategies)
    counts = np.array(model.counts, dtype=np.float64)
    bars = []
    for turn, one in enumerate(model.strategies):
        there = np.searchsorted(one.counts, counts)
        known = np.isin(counts, one.counts)
        places = there[known]
        heights, errors = factor * (one.values[places] - model.unedited), factor * np.nan_to_num(one.errors[places])
        offset = (turn - (len(model.strategies) - 1) / 2) * width
        shown = errors if errors.any() else None
        bars.append(Bars(one.label, counts[known], heights, one.look, errors=shown, width=0.92 * width, offset=offset))
    ticks = tuple((count, f"{count:.0f}") for count in counts)
    return Panel(tuple(bars), model.label, Axis("layers taken out", ticks=ticks), axis)
