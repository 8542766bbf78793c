"""A measure of all matrices of base, tuned and delta: boxes by matrix, every head a point from blue (first layer) to red (last)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette
from analysis.drawing import Axis, Dots, Drawing, Look, Mark, Panel, Spread
from analysis.spectral import UNITS, chosen_roles, jitter, measure_text, of_role, role_text
from analysis.spectral_triples import LOOKS, Triple, name_of, triples
from analysis.spectral_triples import NEEDS as NEEDS
from cpt_lab.architecture import ATTENTION_ROLES

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

SHOWS = "box plots of measures by matrix: base, tuned and delta side by side, heads coloured by layer"
PAPERS = ("P appendix D, box plots",)
STEP, WIDTH = 0.3, 0.13  # between the three of a matrix; of a box and of its points


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per pair of checkpoints, a panel per measure; some measures are shown of the MLP alone (P appendix D)."""
    found = triples(results, measures=[*settings["measures"], *settings["mlp_measures"]])
    return [_drawing(triple, settings, name_of("spectra_boxes", place, len(found))) for place, triple in enumerate(found)]


def _drawing(triple: Triple, settings: Mapping[str, Any], name: str) -> Drawing:
    roles = chosen_roles(settings["roles"], list(triple.members.values()))
    of_mlp = [role for role in roles if role not in ATTENTION_ROLES]
    frames = {part: one.table() for part, one in triple.members.items()}
    wanted = [(measure, roles) for measure in settings["measures"]] + [(measure, of_mlp) for measure in settings["mlp_measures"] if of_mlp]
    rows = tuple((_panel(triple, frames, there, measure),) for measure, there in wanted)
    said = (
        "Boxes: quartiles, whiskers to 1.5 times their distance. A point is a head, or a whole matrix of the MLP, blue in the first "
        f"layer to red in the last. {triple.sources()}."
    )
    return Drawing(name, f"Base, tuned and delta: {triple.label}", said, rows, panel_size=(7.0, 2.6))


def _panel(triple: Triple, frames: Mapping[str, pd.DataFrame], roles: Sequence[str], measure: str) -> Panel:
    marks: list[Mark] = []
    points: dict[int, list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]] = {}
    for turn, part in enumerate(frames):
        for place, role in enumerate(roles):
            at = place + STEP * (turn - 1)
            rows = of_role(frames[part], role)
            box = Spread(part, at - WIDTH / 2, rows[measure].dropna().to_numpy(np.float64), LOOKS[part], width=WIDTH, in_legend=place == 0)
            marks.append(box)
            for layer, values in rows.groupby("layer")[measure]:
                points.setdefault(int(str(layer)), []).append((jitter(at + WIDTH / 2, len(values), WIDTH), values.to_numpy(np.float64)))
    depth = triple.delta.shape.num_layers
    for layer, pairs in sorted(points.items()):
        x, y = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
        look = Look(palette.layer_colour(layer, depth), marker="o")
        marks.append(Dots(f"layer {layer}", x, y, look, size=2.5, text=(f"layer {layer}",) * len(x), in_legend=layer in (0, depth - 1)))
    ticks = tuple((float(place), role_text(role)) for place, role in enumerate(roles))
    y_axis = Axis(measure_text(measure), UNITS.get(measure, ""))
    return Panel(tuple(marks), measure_text(measure), Axis("matrix", ticks=ticks, limits=(-0.6, len(roles) - 0.4)), y_axis)
