"""Whether both sides of a matrix turned together, layer by layer: NF of I_orth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.drawing import Drawing, grid
from analysis.matrix_lines import panels
from analysis.spectral import chosen_roles, sources, tables

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "by layer, how far the two sides of a matrix are from having turned together (NF)"
PAPERS = ("T figure 3b", "T figure 9")
NEEDS = "tables of pairs of whole matrices (target=spectra spectra=post_training; see experiments post_training_MODEL)"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per role, a line per pair of checkpoints."""
    found = tables(results, kind="deltas", measures=["rotation_nf"], needs=NEEDS)
    drawn = panels(found, chosen_roles(settings["roles"], found), "rotation_nf", None)
    said = (
        "NF = ||I_orth - I||_F / n with I_orth = (U_base^T U_tuned)^T V_base^T V_tuned: 0 where both sides turned alike, about sqrt(2 / n) "
        f"for square matrices that have nothing in common. {sources(found)}."
    )
    return Drawing("rotation_layers", "Did both sides of every matrix turn together?", said, grid(drawn, min(2, len(drawn))))
