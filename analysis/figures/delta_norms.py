"""How much training changed each layer: norms of deltas by layer, per domain and budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis import spectral_layers

if TYPE_CHECKING:
    from analysis.drawing import Drawing
    from analysis.results import Results

SHOWS = "norms of deltas by layer, per domain and budget"
PAPERS = ("P figure 4", "P figure 13")
NEEDS = "tables of deltas (target=spectra, spectra.against=base) with frobenius_norm"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per role and measure of `settings`."""
    return spectral_layers.build(
        results, settings, name="delta_norms", title="How much continual pre-training changes each layer", kind="deltas", needs=NEEDS
    )
