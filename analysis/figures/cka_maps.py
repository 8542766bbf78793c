"""How alike layers represent the same prompts when singular vectors are put back and restored: maps of linear CKA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.captions import missing, sentences, short
from analysis.drawing import Axis, Drawing, Heat, Panel, grid
from analysis.edited import REPLACED, ROTATED, Group, groups, same
from analysis.lineage import called
from cpt_lab.specs import LayerSimilarity, Patched, key

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

SHOWS = "maps of layer by layer: similarity (CKA) of an edited model with the tuned one"
PAPERS = ("T figure 6", "T figure 19")
NEEDS = "similarities of layers of a tuned model as it is and edited (target=layer_similarity; see experiments similarity_MODEL)"
COLUMNS = 3


def build(results: Results, _: Mapping[str, Any]) -> list[Drawing]:
    """A figure per model: its own map first, as the control, then one per edit."""
    import pandas as pd

    grouped = groups(results, LayerSimilarity, (*ROTATED, *REPLACED), needs=NEEDS)
    same([point.spec.prompts for group in grouped for _, point in group.every], "sets of prompts")
    drawn = []
    for place, group in enumerate(grouped):
        maps = [cells(pd.read_parquet(point.product / "table.parquet")) for _, point in group.every]
        low = _lowest(maps)
        panels = [_panel(found, text, _other(group, point.spec), low) for found, (text, point) in zip(maps, group.every, strict=True)]
        name = "cka_maps" + (f"_{place + 1}" if len(grouped) > 1 else "")
        drawn.append(
            Drawing(
                name,
                f"Do its layers still represent the same? {group.label}",
                _caption(results, group),
                grid(panels, min(COLUMNS, len(panels))),
                legend=False,
            )
        )
    return drawn


def cells(table: pd.DataFrame) -> NDArray[np.float64]:
    """(layers of the model, layers of the other one)."""
    return table.pivot(index="layer", columns="against_layer", values="cka").to_numpy(np.float64)


def _lowest(maps: Sequence[NDArray[np.float64]]) -> float:
    """Where the colours begin: the tenth below the smallest value of a model's maps."""
    known = np.concatenate([found[np.isfinite(found)] for found in maps])
    return float(np.floor(10 * known.min()) / 10) if len(known) and known.min() < 1 else 0.0


def _panel(found: NDArray[np.float64], text: str, other: str, low: float) -> Panel:
    return Panel((Heat(found, label="CKA", limits=(low, 1.0)),), text, Axis(f"layer of {other}"), Axis("layer of this model"))


def _other(group: Group[LayerSimilarity], spec: LayerSimilarity) -> str:
    """What the model is compared with."""
    against = spec.against
    if isinstance(against, Patched):
        return against.label()
    return "the tuned model" if key(against) == key(group.tuned) else called(against)


def _caption(results: Results, group: Group[LayerSimilarity]) -> str:
    first = group.every[0][1].spec
    prompts = first.prompts
    control = "" if group.original is not None else "The tuned model's own map, the control, is not in the study"
    few = (
        f"With {prompts.count} prompts in {first.checkpoint.shape.hidden_size} dimensions CKA of unrelated features is well above 0"
        if prompts.count < first.checkpoint.shape.hidden_size
        else ""
    )
    points = "; ".join(f"{text} ({short(key(point.spec))})" for text, point in group.every)
    return sentences(f"Linear CKA over {prompts.count} prompts ({prompts.label()})", few, control, missing(results.points), points)
