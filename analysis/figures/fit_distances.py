"""Goodness of fit by layer: distances of spectra to Marchenko-Pastur and to a power law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis import spectral_layers

if TYPE_CHECKING:
    from analysis.drawing import Drawing
    from analysis.results import Results

SHOWS = "distances of spectra to Marchenko-Pastur and power laws by layer"
PAPERS = ("P figure 11",)
NEEDS = "tables of weights (target=spectra, spectra.against=null) with mp_ks and pl_ks"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per role and measure of `settings`."""
    return spectral_layers.build(
        results, settings, name="fit_distances", title="How well random-matrix and power laws fit, by layer", kind="weights", needs=NEEDS
    )
