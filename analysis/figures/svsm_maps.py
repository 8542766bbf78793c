"""How training scaled every singular value of every layer: maps of s_tuned / s_base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Axis, Drawing, Heat, Panel, Values
from analysis.scalings import factors, principal
from analysis.spectral import Named, chosen_roles, role_text, sources, tables

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "maps of layer by singular value: by which factor training scaled it"
PAPERS = ("T figure 2", "T figure 7")
NEEDS = "tables of pairs of whole matrices (target=spectra spectra=post_training; see experiments post_training_MODEL)"
MIDDLE, ROUNDS_TO = 1.0, 1e-12


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row of panels per pair of checkpoints, a panel per role, all on one scale: that of the largest 90 % of the values."""
    found = tables(results, kind="deltas", measures=["svsm_mean"], needs=NEEDS)
    roles = chosen_roles(settings["roles"], found)
    every = {(one.label, role): factors(results, one, role) for one in found for role in roles}
    limits = _limits(list(every.values()))
    cells = int(settings["cells"])
    rows = tuple(tuple(_panel(one, role, averaged(every[one.label, role], cells), limits) for role in roles) for one in found)
    return Drawing("svsm_maps", "How training scaled singular values", _caption(found, list(every.values()), cells), rows, legend=False)


def averaged(found: Values, most: int) -> Values:
    """(layers, at most so many): means over neighbouring values, of those that there are; nan where there are none."""
    if found.shape[1] <= most:
        return found
    parts = np.array_split(found, most, axis=1)
    there = [np.isfinite(part).any(axis=1) for part in parts]
    means = [
        np.where(known, np.nansum(part, axis=1) / np.maximum(np.isfinite(part).sum(axis=1), 1), np.nan)
        for part, known in zip(parts, there, strict=True)
    ]
    return np.stack(means, axis=1)


def _panel(one: Named, role: str, cells: Values, limits: tuple[float, float]) -> Panel:
    columns = tuple(f"{100 * place / cells.shape[1]:.0f}" for place in range(cells.shape[1]))
    heat = Heat(cells, columns=columns, label="tuned / base", limits=limits)
    return Panel((heat,), f"{one.label}: {role_text(role)}", Axis("singular value, from the largest", "% of all"), Axis("layer"))


def _limits(every: Sequence[Values]) -> tuple[float, float]:
    """Of the principal values: the tail is small and scales anyhow."""
    known = np.concatenate([principal(found).ravel() for found in every])
    known = known[np.isfinite(known)]
    if not len(known):
        return 0.9 * MIDDLE, 1.1 * MIDDLE
    low, high = float(known.min()), float(known.max())
    return (low, high) if high - low > ROUNDS_TO else (low - 0.01, high + 0.01)


def _caption(found: Sequence[Named], every: Sequence[Values], cells: int) -> str:
    longest = max(factors.shape[1] for factors in every)
    mean = f" A cell is the mean over neighbours: {longest} values in {cells} columns." if longest > cells else ""
    white = " White: the base's value is no more than rounding." if any(np.isnan(factors).any() for factors in every) else ""
    said = "s_tuned,i / s_base,i by layer; colours span the largest 90 % of the values, the tail may lie beyond."
    return f"{said}{mean}{white} {sources(found)}."
