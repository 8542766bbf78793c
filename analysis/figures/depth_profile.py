"""Norms and ranks of weights by depth, of models of several sizes or budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis import spectral_layers

if TYPE_CHECKING:
    from analysis.drawing import Drawing
    from analysis.results import Results

SHOWS = "norms and ranks of weights by depth, per model"
PAPERS = ("P figure 9a",)
NEEDS = "tables of weights (target=spectra, spectra.against=null) with norms"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per role and measure of `settings`."""
    return spectral_layers.build(results, settings, name="depth_profile", title="Spectra by depth", kind="weights", needs=NEEDS)
