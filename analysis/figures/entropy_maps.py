"""How evenly every head spreads its attention, as it is, edited, and the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import entropies
from analysis.drawing import Axis, Drawing, Heat, Panel

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "maps of layer by head: attention entropy as it is, edited, and the difference"
PAPERS = ("T figure 4b", "T figure 15", "T figure 16", "T figure 17", "T figure 18")
NEEDS = entropies.NEEDS


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row of three maps per model and edit."""
    positions = str(settings["positions"])
    column, grouped = entropies.column(positions), entropies.found(results)
    rows = []
    for group in grouped:
        if group.original is None:
            raise ValueError(f"the entropies of {group.label} as it is are not in the study: add the point with intervention=none")
        own = entropies.by_head(entropies.read(group.original), column)
        for text, point in group.edited:
            edited = entropies.by_head(entropies.read(point), column)
            limits = (0.0, float(np.nanmax([own.max(), edited.max()])) or 1.0)
            heats = {
                "original": Heat(own, label="entropy [nats]", limits=limits),
                text: Heat(edited, label="entropy [nats]", limits=limits),
                "difference": Heat(edited - own, label="edited less original [nats]", diverging=True),
            }
            rows.append(tuple(Panel((heat,), f"{group.label}: {name}", Axis("head"), Axis("layer")) for name, heat in heats.items()))
    said = entropies.caption(results, grouped, positions)
    return Drawing("entropy_maps", "How evenly every head spreads its attention", said, tuple(rows), legend=False)
