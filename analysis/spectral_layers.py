"""Measures over the layers: per table of spectra the mean over heads as a solid line, the median dashed, mean ± deviation as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Axis, Drawing, Line, Panel
from analysis.spectral import UNITS, Kind, Named, chosen_roles, layer_axis, measure_text, of_role, places, role_text, sources, tables

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results


def build(results: Results, settings: Mapping[str, Any], *, name: str, title: str, kind: Kind, needs: str) -> Drawing:
    """A panel for each of settings.roles and settings.measures, a row of panels per role; a line per table.

    Models of different depth share the axis: layers are then percent of the depth, as in P figure 9.
    """
    measures = list(settings["measures"])
    found = tables(results, kind=kind, measures=measures, needs=needs)
    roles = chosen_roles(settings.get("roles"), found)
    axis = layer_axis([one.shape for one in found])
    frames = {one.label: one.table() for one in found}
    rows = tuple(tuple(panel(found, frames, role, measure, axis=axis) for measure in measures) for role in roles)
    return Drawing(name, title, caption(found, frames, roles), rows)


def panel(found: Sequence[Named], frames: Mapping[str, pd.DataFrame], role: str, measure: str, *, axis: Axis) -> Panel:
    """One measure of one role."""
    marks = tuple(line for one in found for line in lines(one, frames[one.label], role, measure, axis=axis))
    return Panel(marks, f"{role_text(role)}: {measure_text(measure)}", axis, Axis(measure_text(measure), UNITS.get(measure, "")))


def lines(one: Named, frame: pd.DataFrame, role: str, measure: str, *, axis: Axis) -> tuple[Line, ...]:
    """Mean with band and, where a layer has several heads, median of a table by layer."""
    rows = of_role(frame, role).groupby("layer")[measure]
    layers = rows.mean().index.to_numpy(np.float64)
    x = places(layers, one.shape.num_layers, axis)
    mean, deviation = rows.mean().to_numpy(np.float64), np.asarray(rows.std(ddof=0), dtype=np.float64)
    solid = replace(one.look, dash="solid", marker="")
    if (rows.count() <= 1).all():
        return (Line(one.label, x, mean, replace(solid, marker=one.look.marker), group=one.label),)
    median = Line(
        f"{one.label}, median",
        x,
        rows.median().to_numpy(np.float64),
        replace(solid, dash="dashed", width=1.2),
        in_legend=False,
        group=one.label,
    )
    return (Line(one.label, x, mean, solid, band=deviation, group=one.label), median)


def caption(found: Sequence[Named], frames: Mapping[str, pd.DataFrame], roles: Sequence[str]) -> str:
    """What the lines are, over how many heads, and of which tables."""
    counts = {len(of_role(frames[one.label], role)) // one.shape.num_layers for one in found for role in roles}
    many = sorted(count for count in counts if count > 1)
    heads = f" over the {' or '.join(map(str, many))} heads of a layer (solid: mean, dashed: median, band: mean ± standard deviation)"
    return f"Lines{heads if many else ': whole matrices'}. One training run each: bands are no error bars. {sources(found)}."
