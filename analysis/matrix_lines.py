"""Measures of whole matrices over the layers, a line per pair of checkpoints, with the deviation of the singular values as a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.drawing import Axis, Line, Panel
from analysis.spectral import Named, layer_axis, measure_text, places, role_text, whole

if TYPE_CHECKING:
    import pandas as pd


def panels(found: Sequence[Named], roles: Sequence[str], measure: str, band: str | None, *, label: str = "") -> list[Panel]:
    """A panel per role; `band` is the measure that holds the half-width."""
    x = layer_axis([one.shape for one in found])
    frames = {one.label: one.table() for one in found}
    return [
        Panel(
            tuple(_line(one, frames[one.label], role, measure, band, x) for one in found),
            role_text(role),
            x,
            Axis(label or measure_text(measure)),
        )
        for role in roles
    ]


def _line(one: Named, frame: pd.DataFrame, role: str, measure: str, band: str | None, axis: Axis) -> Line:
    rows = whole(frame, role).sort_values("layer")
    layers = rows["layer"].to_numpy(np.float64)
    x = places(layers, one.shape.num_layers, axis)
    width = None if band is None else rows[band].to_numpy(np.float64)
    return Line(one.label, x, rows[measure].to_numpy(np.float64), one.look, band=width, group=one.label)
