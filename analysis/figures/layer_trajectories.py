"""Measures of every layer while a model trains, from blue (first layer) to red (last)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Drawing, Line, Look, Panel
from analysis.spectral import UNITS, measure_text
from analysis.watched import Run

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "spectral measures over training, a line per layer from blue to red"
PAPERS = ("L figure 16", "L figure 17", "L figure 19")
NEEDS = watched.NEEDS


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per run (the first seed of each), a column per measure."""
    found = watched.groups(results)
    measures = list(settings["measures"])
    roles = {measure: watched.chosen(settings["roles"], found, measure) for measure in measures}
    rows = tuple(tuple(_panel(group.runs[0], measure, roles[measure]) for measure in measures) for group in found)
    words = watched.roles_text(roles[measures[0]])
    said = f"{words}, a line per layer from blue (the first) to red (the last). {watched.of_first_seeds(found)}"
    return Drawing("layer_trajectories", "How layers change while they learn", said, rows, legend=False, panel_size=(4.0, 2.4))


def _panel(run: Run, measure: str, roles: Sequence[str]) -> Panel:
    table = run.read(measure)
    steps, values = table.steps.astype(np.float64), table.of(roles)
    lines = tuple(
        Line(f"layer {layer}", steps, values[:, layer], Look(palette.layer_colour(layer, run.depth), width=1.4))
        for layer in range(run.depth)
    )
    return Panel(lines, f"{run.label}: {measure_text(measure)}", watched.STEPS, Axis(measure_text(measure), UNITS.get(measure, "")))
