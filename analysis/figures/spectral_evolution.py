"""Norms and ranks along pre-training: a box per checkpoint, with every matrix as a point from blue (first layer) to red (last)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette
from analysis.drawing import Axis, Dots, Drawing, Look, Panel, Spread
from analysis.lineage import origin, tokens_text
from analysis.spectral import (
    UNITS,
    Named,
    chosen_roles,
    jitter,
    measure_text,
    of_role,
    pretrain_tokens,
    role_text,
    sources,
    tables,
)
from cpt_lab.specs import Intermediate

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

SHOWS = "spectral measures along pre-training: box plots, every matrix a point coloured by its layer"
PAPERS = ("P figure 2a",)
NEEDS = "tables of the weights of at least two checkpoints (target=spectra, spectra.against=null; see experiment evolution_1b)"
BOX, POINTS, WIDTH = -0.18, 0.18, 0.22  # where box and points stand around the place of their checkpoint


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per role, a column per measure; checkpoints from the least to the most tokens, tuned ones only if there are no two others."""
    measures = list(settings["measures"])
    found = tables(results, kind="weights", measures=measures, needs=NEEDS)
    bases = [one for one in found if origin(one.spec.checkpoint)["role"] == "base"]
    found = bases if len(bases) > 1 else found
    if len(found) < 2:
        raise ValueError(
            f"study {results.name!r} has the weights of one checkpoint ({found[0].label}): an evolution needs two. It needs {NEEDS}"
        )
    roles = chosen_roles(settings["roles"], found)
    frames = [one.table() for one in found]
    rows = tuple(tuple(_panel(found, frames, role, measure) for measure in measures) for role in roles)
    title = "How spectra change along pre-training"
    return Drawing("spectral_evolution", title, _caption(found, frames, roles), rows, legend=False)


def _panel(found: Sequence[Named], frames: Sequence[pd.DataFrame], role: str, measure: str) -> Panel:
    samples = [of_role(frame, role) for frame in frames]
    look = palette.MATRICES[role]
    boxes = [
        Spread(one.label, at + BOX, rows[measure].dropna().to_numpy(np.float64), look, width=WIDTH)
        for at, (one, rows) in enumerate(zip(found, samples, strict=True))
    ]
    depth = max(one.shape.num_layers for one in found)
    points = [_layer(samples, measure, layer, depth) for layer in range(depth)]
    ticks = tuple((float(at), _tick(one)) for at, one in enumerate(found))
    x = Axis("tokens of pre-training", ticks=ticks, limits=(-0.6, len(found) - 0.4))
    return Panel((*boxes, *points), f"{role_text(role)}: {measure_text(measure)}", x, Axis(measure_text(measure), UNITS.get(measure, "")))


def _layer(samples: Sequence[pd.DataFrame], measure: str, layer: int, depth: int) -> Dots:
    """The matrices of one layer in all checkpoints."""
    values = [rows.loc[rows["layer"] == layer, measure].to_numpy(np.float64) for rows in samples]
    x = np.concatenate([jitter(at + POINTS, len(column), WIDTH) for at, column in enumerate(values)])
    text = tuple(f"layer {layer}" for _ in x)
    look = Look(palette.layer_colour(layer, depth), marker="o")
    return Dots(f"layer {layer}", x, np.concatenate(values), look, size=3.0, text=text, in_legend=layer in (0, depth - 1))


def _tick(one: Named) -> str:
    """Tokens; of weights on the way, whose learning rate has not yet come down, those of the whole run too."""
    checkpoint = one.spec.checkpoint
    seen = pretrain_tokens(checkpoint)
    of = f" of\n{tokens_text(checkpoint.of.mixture.tokens)}" if isinstance(checkpoint, Intermediate) else ""
    return one.label if seen is None else f"{tokens_text(seen)}{of}"


def _caption(found: Sequence[Named], frames: Sequence[pd.DataFrame], roles: Sequence[str]) -> str:
    counts = ", ".join(f"{len(of_role(frames[0], role))} of {role_text(role)}" for role in roles)
    return (
        f"A point is a head, or a whole matrix of the MLP ({counts}), from blue in the first layer to red in the last. Boxes: quartiles, "
        f"whiskers to 1.5 times their distance. One training run per checkpoint. {sources(found)}."
    )
