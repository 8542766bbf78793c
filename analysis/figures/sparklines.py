"""Every measure of every kind of matrix by layer, small: the trend at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis import spectral_layers
from analysis.spectral import Kind, tables

if TYPE_CHECKING:
    from analysis.drawing import Drawing
    from analysis.results import Results

SHOWS = "every measure by layer in small panels"
PAPERS = ("P appendix D, sparklines",)
NEEDS = "tables of spectra (target=spectra)"

SMALL = (2.3, 1.4)  # inches
MOST = 8  # tables in one figure: there are no more colours


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A panel per role and measure of `settings`; of many tables a figure of the weights and one of the deltas."""
    found = tables(results, kind="any", measures=list(settings["measures"]), needs=NEEDS)
    deltas = sum(one.spec.against is not None for one in found)
    kinds: tuple[Kind, ...] = ("weights", "deltas") if len(found) > MOST and 0 < deltas < len(found) else ("any",)
    return [_drawing(results, settings, kind) for kind in kinds]


def _drawing(results: Results, settings: Mapping[str, Any], kind: Kind) -> Drawing:
    name, of = ("sparklines", "") if kind == "any" else (f"sparklines_{kind}", f" of {kind}")
    drawn = spectral_layers.build(results, settings, name=name, title=f"Every measure{of} by layer", kind=kind, needs=NEEDS)
    return replace(drawn, panel_size=SMALL)
