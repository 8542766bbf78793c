"""How evenly attention is spread, layer by layer, of a model as it is and with edited singular values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis import entropies, palette
from analysis.captions import sentences
from analysis.drawing import Axis, Drawing, Line, Panel, grid
from analysis.edited import ORIGINAL
from analysis.spectral import layer_axis

if TYPE_CHECKING:
    from analysis.edited import Group
    from analysis.results import Results
    from cpt_lab.specs import AttentionEntropy

SHOWS = "attention entropy by layer, as it is and edited, with paired error bands"
PAPERS = ("T figure 4b", "T figure 15", "T figure 16", "T figure 17", "T figure 18")
NEEDS = entropies.NEEDS


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per model, a line per edit."""
    positions = str(settings["positions"])
    grouped = entropies.found(results)
    panels = [_panel(group, entropies.column(positions)) for group in grouped]
    single = any(point.spec.prompts.count == 1 for group in grouped for _, point in group.every)
    bands = (
        "One prompt: no bands" if single else "Bands: ± the paired standard error, over prompts, of the difference to the untouched model"
    )
    said = sentences("Mean over the heads of a layer", bands, entropies.caption(results, grouped, positions))
    return Drawing("entropy_layers", "How evenly attention is spread", said, grid(panels, min(2, len(panels))), panel_size=(4.4, 2.8))


def _panel(group: Group[AttentionEntropy], column: str) -> Panel:
    looks = palette.series([text for text, _ in group.every], {ORIGINAL: palette.ROLES["base"]})
    original = None if group.original is None else entropies.read(group.original)
    lines = []
    for text, point in group.every:
        found = entropies.by_layer(entropies.read(point), None if text == ORIGINAL else original, column)
        lines.append(Line(text, found.layers, found.mean, looks[text], band=found.error))
    return Panel(tuple(lines), group.label, layer_axis([group.tuned.shape]), Axis("attention entropy", "nats"))
