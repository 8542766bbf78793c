"""Every measure of every kind of matrix by layer, small: the trend at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis import spectral_layers

if TYPE_CHECKING:
    from analysis.drawing import Drawing
    from analysis.results import Results

SHOWS = "every measure by layer in small panels"
PAPERS = ("P appendix D, sparklines",)
NEEDS = "tables of spectra (target=spectra)"

SMALL = (2.3, 1.4)  # inches


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per role and measure of `settings`."""
    drawn = spectral_layers.build(results, settings, name="sparklines", title="Every measure by layer", kind="any", needs=NEEDS)
    return replace(drawn, panel_size=SMALL)
