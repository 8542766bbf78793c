"""Spectra of single heads at several budgets or sizes, every singular value a point coloured by the agreement of its vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.drawing import Drawing, grid
from analysis.spectral import chosen_roles, tables
from analysis.spectral_violins import Place, caption, heads_of, one_scale, panel, panel_title, style

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "singular values of single heads as violins, each value coloured by the agreement of its vector"
PAPERS = ("P figure 2b", "P figure 9b")
NEEDS = "tables of spectra with indices (target=spectra, spectra.indices=true); with spectra.against=base values are coloured by agreement"
HEADS, COLUMNS = 4, 3  # heads where none are named; panels beside each other


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per table; pairs of checkpoints if there are any, else the weights."""
    how = style(settings)
    try:
        found = tables(results, kind="deltas", measures=[how.agreement] if how.agreement else [], indices=True, needs=NEEDS)
    except ValueError:
        found = tables(results, kind="weights", indices=True, needs=NEEDS)
    (role,) = chosen_roles([settings["role"]], found)
    frames = [one.indices() for one in found]
    panels = []
    for one, rows in zip(found, frames, strict=True):
        layer = one.shape.num_layers // 2 if settings["layer"] is None else int(settings["layer"])
        places = [Place(layer, head, "whole" if head < 0 else str(head)) for head in heads_of(one, role, settings["heads"], HEADS)]
        panels.append(panel(one, rows, role, places, how, title=panel_title(one, role, layer), axis="head"))
    return Drawing(
        "singular_values",
        "Singular values head by head",
        caption(found, frames, role, how),
        grid(one_scale(panels), min(COLUMNS, len(panels))),
        legend=False,
    )
