"""Quality against the number of layers that were taken out, a line per way to choose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import captions, metrics, pruned
from analysis.drawing import Axis, Drawing, Line, Panel, Reference
from analysis.errors import PAIRED
from analysis.pruned import Model, Strategy
from cpt_lab.specs import key

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "quality against layers pruned: the last ones, random ones, and those that a ranking chooses"
PAPERS = (*(f"L figure {number}" for number in (11, 12, 13, 14, 15)), "L figure 23")
NEEDS = pruned.NEEDS


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per model; ValueError if nothing was pruned."""
    metric = metrics.panels(results.points, settings["metric"])[0]
    found = pruned.models(results, metric)
    factor = metrics.scale(results.points, metric)
    panels = tuple(_panel(model, results, metric, factor) for model in found)
    title = captions.title(results, "quality against layers pruned")
    per_row = min(2, len(panels))
    rows = tuple(panels[start : start + per_row] for start in range(0, len(panels), per_row))
    return Drawing("pruning_lines", title, caption(results, found, metric), rows, panel_size=(5.2, 3.6))


def caption(results: Results, found: Sequence[Model], metric: str) -> str:
    """Protocol, what errors are, models and gaps."""
    seeds = [one for model in found for one in model.strategies if one.seeds > 1]
    drawn = f"; of {seeds[0].label} standard deviation over {seeds[0].seeds} draws" if seeds else ""
    paired = any(np.isfinite(one.errors[1:]).any() for model in found for one in model.strategies if one.seeds == 1)
    errors = f"Errors: {PAIRED}{drawn}" if paired else f"No paired errors: {metric} is no mean over documents{drawn}"
    unscored = [model.label for model in found if not np.isfinite(model.unedited)]
    return captions.sentences(
        captions.protocol(results.points, [metric]),
        errors,
        f"Without the unpruned model, which was not evaluated: {', '.join(unscored)}" if unscored else "",
        f"Models: {', '.join(f'{model.label} ({captions.short(key(model.tuned))})' for model in found)}",
        captions.missing(results.points),
    )


def _panel(model: Model, results: Results, metric: str, factor: float) -> Panel:
    lines = tuple(_line(one, factor) for one in model.strategies)
    level = (Reference("all layers", y=factor * model.unedited),) if np.isfinite(model.unedited) else ()
    ticks = tuple((float(count), str(count)) for count in (0, *model.counts))
    axis = metrics.axis(results.points, metric)
    scale = Axis(axis.label, axis.unit, scale="log") if metric.endswith("perplexity") else axis
    return Panel((*level, *lines), model.label, Axis("layers taken out", ticks=ticks), scale)


def _line(one: Strategy, factor: float) -> Line:
    bars = factor * np.nan_to_num(one.errors)
    return Line(one.label, one.counts, factor * one.values, one.look, bars=bars if bars.any() else None)
