"""How evenly training scaled the singular values of each layer: mean and deviation of s_tuned / s_base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.drawing import Drawing, Look, Reference, grid
from analysis.matrix_lines import panels
from analysis.spectral import chosen_roles, sources, tables

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "by layer, mean and deviation of the factors by which training scaled singular values"
PAPERS = ("T figure 8",)
NEEDS = "tables of pairs of whole matrices (target=spectra spectra=post_training; see experiments post_training_MODEL)"
ONE = Reference("not scaled", y=1.0, look=Look("#222222", "dotted", width=0.9))


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per role, a line per pair of checkpoints."""
    found = tables(results, kind="deltas", measures=["svsm_mean", "svsm_std"], needs=NEEDS)
    drawn = panels(found, chosen_roles(settings["roles"], found), "svsm_mean", "svsm_std", label="tuned / base")
    said = f"Line: mean of s_tuned,i / s_base,i over the largest 90 % of the values; band: ± their standard deviation. {sources(found)}."
    rows = grid([replace(panel, marks=(ONE, *panel.marks)) for panel in drawn], min(2, len(drawn)))
    return Drawing("svsm_bands", "Is every singular value of a layer scaled alike?", said, rows)
