"""Spectra as violins with every singular value a point, coloured by how its vector agrees with that of the other checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Axis, Dots, Look, Mark, Panel, Spread, Values
from analysis.spectral import Named, jitter, measure_text, role_text, sources, thinned
from cpt_lab.architecture import ATTENTION_ROLES
from cpt_lab.spectra.blocks import WHOLE

if TYPE_CHECKING:
    import pandas as pd

BODY = Look("#B5B5B5")
POINT = Look("#222222", marker="o")
WIDTH = 0.8


@dataclass(frozen=True)
class Place:
    """A block whose spectrum is drawn, and what it is called on the axis."""

    layer: int
    head: int
    name: str


@dataclass(frozen=True)
class Style:
    """What the colours are (a column of the long form, empty for none), and how many values of a spectrum are drawn at most."""

    agreement: str
    most: int


def style(settings: Mapping[str, Any]) -> Style:
    return Style(settings["agreement"] or "", int(settings["points"]))


def panel(one: Named, rows: pd.DataFrame, role: str, places: Sequence[Place], how: Style, *, title: str, axis: str) -> Panel:
    """The spectra of several blocks of one role beside each other; ValueError for a block that the table does not have."""
    marks: list[Mark] = []
    groups = dict(iter(rows[rows["role"] == role].groupby(["layer", "head"])))
    for at, place in enumerate(places):
        if (place.layer, place.head) not in groups:
            block = "its whole matrix" if place.head == WHOLE else f"head {place.head}"
            raise ValueError(f"{one.label} has no {block} of {role} in layer {place.layer}: choose other layers, heads or roles")
        marks += _spectrum(groups[place.layer, place.head], float(at), place.name, how)
    coloured = any(isinstance(mark, Dots) and mark.by is not None for mark in marks)
    ticks = tuple((float(at), place.name) for at, place in enumerate(places))
    x = Axis(axis, ticks=ticks, limits=(-0.6, len(places) - 0.4))
    return Panel(tuple(marks), title, x, Axis("singular value"), colours=measure_text(how.agreement) if coloured else "")


def one_scale(panels: Sequence[Panel]) -> list[Panel]:
    """The same panels with the same ends of their colours, so that colours can be compared."""
    given = [mark.by for panel in panels for mark in panel.marks if isinstance(mark, Dots) and mark.by is not None]
    known = np.concatenate(given) if given else np.zeros(0)
    known = known[np.isfinite(known)]
    limits = (float(known.min()), float(known.max())) if len(known) else None
    return [replace(panel, colour_limits=limits) for panel in panels]


def heads_of(one: Named, role: str, heads: Sequence[int] | None, count: int) -> list[int]:
    """The asked heads, or so many evenly spaced ones; of an MLP matrix the whole."""
    if role not in ATTENTION_ROLES:
        return [WHOLE]
    there = one.shape.num_heads if role in ("q", "o") else one.shape.num_kv_heads
    return list(heads) if heads is not None else [int(head) for head in thinned(there, count)]


def panel_title(one: Named, role: str, layer: int) -> str:
    return f"{one.label}: {role_text(role)}, layer {layer}"


def caption(found: Sequence[Named], frames: Sequence[pd.DataFrame], role: str, how: Style) -> str:
    """What points and colours are, and whether some were left out."""
    longest = max(int(rows.loc[rows["role"] == role, "index"].max()) + 1 for rows in frames)
    thin = (
        f" Of longer spectra {how.most} values, evenly spaced by rank, are drawn (the longest has {longest})." if longest > how.most else ""
    )
    pairs = [one for one in found if one.spec.against is not None]
    of = (
        "singular values of the base where two checkpoints are compared, else of the weights" if pairs else "singular values of the weights"
    )
    colours = (
        f" Colour: {measure_text(how.agreement)} of the base's vector with those of the tuned model." if pairs and how.agreement else ""
    )
    return f"Violins and points: {of}.{colours}{thin} {sources(found)}."


def spectrum(rows: pd.DataFrame, how: Style) -> tuple[Values, Values | None]:
    """Singular values, of a pair the base's own, and agreements where the long form has them; thinned."""
    kept = rows.iloc[thinned(len(rows), how.most)]
    values = kept["against_value" if "against_value" in kept else "singular_value"].to_numpy(np.float64)
    by = kept[how.agreement].to_numpy(np.float64) if how.agreement and how.agreement in kept else None
    return values, by


def _spectrum(rows: pd.DataFrame, at: float, name: str, how: Style) -> tuple[Mark, Mark]:
    values, by = spectrum(rows, how)
    text = tuple(f"{name}, value {index}" for index in rows["index"].iloc[thinned(len(rows), how.most)])
    body = Spread(name, at, values, BODY, kind="violin", width=WIDTH)
    return body, Dots(name, jitter(at, len(values), 0.45 * WIDTH), values, POINT, by=by, size=3.0, text=text, in_legend=False)
