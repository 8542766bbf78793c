"""Spectra of whole matrices layer by layer, every singular value a point coloured by the agreement of its vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.drawing import Drawing, grid
from analysis.spectral import chosen_roles, tables
from analysis.spectral_violins import Place, caption, one_scale, panel, style
from cpt_lab.spectra.blocks import WHOLE

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "singular values of whole matrices layer by layer, each coloured by the agreement of its vector"
PAPERS = ("P figure 10",)
NEEDS = "tables of pairs with indices and whole matrices (target=spectra, spectra.against=base, spectra.indices=true, spectra.blocks=all)"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per pair of checkpoints, a violin per layer."""
    how = style(settings)
    found = tables(results, kind="deltas", measures=[how.agreement], indices=True, needs=NEEDS)
    (role,) = chosen_roles([settings["role"]], found)
    frames = [one.indices() for one in found]
    panels = []
    for one, frame in zip(found, frames, strict=True):
        places = [Place(layer, WHOLE, str(layer)) for layer in range(one.shape.num_layers)]
        panels.append(panel(one, frame, role, places, how, title=f"{one.label}: W {role}", axis="layer"))
    title = "Which singular vectors training turned, layer by layer"
    return Drawing(
        "agreement_layers", title, caption(found, frames, role, how), grid(one_scale(panels), 1), legend=False, panel_size=(7.0, 2.4)
    )
