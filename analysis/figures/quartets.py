"""Layer by head, four maps of a measure: base, tuned, delta, and by how much tuned's measure differs from base's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.spectral import UNITS, chosen_roles, measure_text, role_text
from analysis.spectral_triples import NEEDS as NEEDS
from analysis.spectral_triples import Triple, name_of, triples
from cpt_lab.architecture import ATTENTION_ROLES
from cpt_lab.spectra.blocks import WHOLE

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

SHOWS = "maps of layer by head: a measure of base, of tuned and of the delta, and the difference of the first two"
PAPERS = ("P appendix D, quartets of heatmaps",)
Cells = NDArray[np.float64]


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per pair of checkpoints and measure, a row of four maps per role of attention."""
    measures = list(settings["measures"])
    found = triples(results, measures=measures)
    return [
        _drawing(triple, measure, settings["roles"], name_of("quartets", place, len(found), measure))
        for place, triple in enumerate(found)
        for measure in measures
    ]


def cells(frame: pd.DataFrame, role: str, measure: str) -> Cells:
    """(layers, heads) of a measure; ValueError if the table has no heads."""
    rows = frame[(frame["role"] == role) & (frame["head"] != WHOLE)]
    if rows.empty:
        raise ValueError(f"the tables have no heads of {role}: run the study with spectra.blocks=heads or all")
    return rows.pivot(index="layer", columns="head", values=measure).to_numpy(np.float64)


def _drawing(triple: Triple, measure: str, asked: Sequence[str] | None, name: str) -> Drawing:
    frames = {part: one.table() for part, one in triple.members.items()}
    roles = [role for role in chosen_roles(asked, list(triple.members.values())) if role in ATTENTION_ROLES]
    if not roles:
        raise ValueError(f"none of {', '.join(asked or ())} has heads: choose roles from {', '.join(ATTENTION_ROLES)}")
    rows = tuple(_quartet(frames, role, measure) for role in roles)
    said = f"Base and tuned have one scale. {triple.sources()}."
    return Drawing(name, f"{measure_text(measure).capitalize()} head by head: {triple.label}", said, rows, legend=False)


def _quartet(frames: Mapping[str, pd.DataFrame], role: str, measure: str) -> tuple[Panel, ...]:
    found = {part: cells(frame, role, measure) for part, frame in frames.items()}
    both = np.stack([found["base"], found["tuned"]])
    limits = (float(np.nanmin(both)), float(np.nanmax(both))) if np.isfinite(both).any() else None
    unit = f" [{UNITS[measure]}]" if measure in UNITS else ""
    label = measure_text(measure) + unit
    heats = {
        "base": Heat(found["base"], label=label, limits=limits),
        "tuned": Heat(found["tuned"], label=label, limits=limits),
        "delta": Heat(found["delta"], label=label),
        "tuned less base": Heat(found["tuned"] - found["base"], label=f"difference of {label}", diverging=True),
    }
    return tuple(Panel((heat,), f"{role_text(role)}: {part}", Axis("head"), Axis("layer")) for part, heat in heats.items())
