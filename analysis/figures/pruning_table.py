"""Quality with fewer layers in numbers: a row per way to choose them, a column per count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import metrics, pruned
from analysis.drawing import Cell, Sheet
from analysis.figures.pruning_lines import caption
from analysis.pruned import Model, Strategy

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "quality with one, two, ... layers less by how they are chosen, with paired errors; the best of each count is marked"
PAPERS = ("L section 6", "L appendix H")
NEEDS = pruned.NEEDS


def build(results: Results, settings: Mapping[str, Any]) -> Sheet:
    """A group of rows per model."""
    metric = metrics.panels(results.points, settings["metric"])[0]
    found = pruned.models(results, metric)
    factor = metrics.scale(results.points, metric)
    counts = sorted({count for model in found for count in model.counts})
    up = bool(results.points.attrs["higher_is_better"].get(metric))
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    groups = []
    for model in found:
        groups.append((len(rows), model.label))
        if np.isfinite(model.unedited):
            rows.append(("all layers", (Cell(factor * model.unedited, digits=3), *(Cell(None) for _ in counts))))
        rows += [(one.label, (Cell(None), *_cells(one, model, counts, factor, up=up))) for one in model.strategies]
    shown = tuple(groups) if len(groups) > 1 else ()
    heads = ("layers chosen by", "0", *(str(count) for count in counts))
    return Sheet(
        "pruning_table",
        f"{metrics.label(results.points, metric)} with fewer layers",
        caption(results, found, metric),
        heads,
        tuple(rows),
        shown,
    )


def _cells(one: Strategy, model: Model, counts: Sequence[int], factor: float, *, up: bool) -> tuple[Cell, ...]:
    cells = []
    for count in counts:
        value = one.at(count)
        if not np.isfinite(value):
            cells.append(Cell(None))
            continue
        every = [other.at(count) for other in model.strategies if np.isfinite(other.at(count))]
        error = float(one.errors[np.flatnonzero(one.counts == count)[0]])
        best = value == (max(every) if up else min(every))
        cells.append(Cell(factor * value, factor * error if np.isfinite(error) else None, digits=3, best=best))
    return tuple(cells)
