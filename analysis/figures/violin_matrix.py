"""The most detailed view: the spectrum of every head of every layer, coloured by the agreement of its vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from analysis.drawing import Drawing, grid
from analysis.spectral import chosen_roles, role_text, tables, thinned
from analysis.spectral_violins import Place, caption, heads_of, one_scale, panel, style

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "a violin per layer and head, each singular value coloured by the agreement of its vector"
PAPERS = ("P appendix D, violin plots",)
NEEDS = "tables of pairs of heads with indices (target=spectra, spectra.against=base, spectra.indices=true)"
WIDTH, LEAST = 0.32, 3.0  # inches of a head, and of a row of heads


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per pair of checkpoints and role: a row of panels per layer, heads beside each other."""
    how = style(settings)
    found = tables(results, kind="deltas", measures=[how.agreement], indices=True, needs=NEEDS)
    drawn = []
    for place, one in enumerate(found):
        frame = one.indices()
        for role in chosen_roles(settings["roles"], [one]):
            layers = [int(layer) for layer in thinned(one.shape.num_layers, int(settings["layers"]))]
            heads = heads_of(one, role, None, int(settings["heads"]))
            panels = [
                panel(one, frame, role, [Place(layer, head, str(head)) for head in heads], how, title=f"layer {layer}", axis="head")
                for layer in reversed(layers)
            ]
            said = caption([one], [frame], role, how) + _left_out(len(layers), one.shape.num_layers, "layers")
            size = (max(LEAST, WIDTH * len(heads)), 1.7)
            name = f"violin_matrix_{role}" + (f"_{place + 1}" if len(found) > 1 else "")
            title = f"Every head's spectrum: {role_text(role)}, {one.label}"
            drawn.append(replace(Drawing(name, title, said, grid(one_scale(panels), 1), legend=False), panel_size=size))
    return drawn


def _left_out(drawn: int, there: int, what: str) -> str:
    return f" {drawn} of {there} {what}, evenly spaced." if drawn < there else ""
