"""Where a model looks while it reads a prompt, as it is, edited, and the difference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.captions import sentences, short
from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.edited import REPLACED, ROTATED, Group, groups, same
from cpt_lab.specs import AttentionMaps, key

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Found, Results

SHOWS = "attention over a prompt: as it is, edited, and the difference, mean over heads or single heads"
PAPERS = ("T figure 4a",)
NEEDS = "attention maps of a tuned model as it is and edited (target=attention_maps intervention=none,transplant)"
EVERY = -1  # the head that stands for the mean over all


def build(results: Results, _: Mapping[str, Any]) -> list[Drawing]:
    """A figure per model and edit, a row of three maps per layer and head."""
    grouped = groups(results, AttentionMaps, (*REPLACED, *ROTATED), needs=NEEDS)
    same([point.spec.prompts for group in grouped for _, point in group.every], "prompts")
    count = sum(len(group.edited) for group in grouped)
    drawn: list[Drawing] = []
    for group in grouped:
        if group.original is None:
            raise ValueError(f"the attention maps of {group.label} as it is are not in the study: add the point with intervention=none")
        for text, point in group.edited:
            name = "attention_maps" + (f"_{len(drawn) + 1}" if count > 1 else "")
            drawn.append(_drawing(name, group, text, (group.original, point)))
    return drawn


def cells(table: pd.DataFrame, layer: int, head: int) -> NDArray[np.float64]:
    """(who looks, what is looked at); nan above the diagonal, where nothing may be seen."""
    rows = table[(table["layer"] == layer) & (table["head"] == head)]
    found = rows.pivot(index="row", columns="column", values="weight").to_numpy(np.float64)
    return np.where(np.tri(len(found), dtype=bool), found, np.nan)


def _drawing(name: str, group: Group[AttentionMaps], text: str, both: tuple[Found[AttentionMaps], Found[AttentionMaps]]) -> Drawing:
    import pandas as pd

    own, edited = (pd.read_parquet(point.product / "table.parquet") for point in both)
    names = _names(both[0])
    rows = tuple(_row(cells(own, *place), cells(edited, *place), place, names) for place in _shared(own, edited))
    prompts, told = both[0].spec.prompts, json.loads((both[0].product / "prompt.json").read_text())
    tokens, shown = len(told["tokens"]), len(told["first"])
    mean = f", {shown} rows and columns of neighbouring tokens" if shown < tokens else ""
    said = sentences(
        f"Prompt {prompts.count} of {prompts.label().rsplit('-', 1)[0]}: {tokens} tokens{mean}. Rows look at columns, and add up to 1",
        f"{group.label} ({short(key(both[0].spec))}), {text} ({short(key(both[1].spec))})",
    )
    return Drawing(name, f"Where {group.label} looks: {text}", said, rows, legend=False)


def _shared(own: pd.DataFrame, edited: pd.DataFrame) -> list[tuple[int, int]]:
    """The layers and heads that both have."""
    first, second = (
        {(int(layer), int(head)) for layer, head in table[["layer", "head"]].drop_duplicates().to_numpy()} for table in (own, edited)
    )
    return sorted(first & second)


def _row(own: NDArray[np.float64], edited: NDArray[np.float64], place: tuple[int, int], names: tuple[str, ...]) -> tuple[Panel, ...]:
    layer, head = place
    where = f"layer {layer}, " + ("mean of heads" if head == EVERY else f"head {head}")
    limits = (0.0, float(np.nanmax([np.nanmax(own), np.nanmax(edited)])))
    heats = {
        "original": Heat(own, names, names, "attention", limits=limits, downwards=True),
        "edited": Heat(edited, names, names, "attention", limits=limits, downwards=True),
        "difference": Heat(edited - own, names, names, "edited less original", diverging=True, downwards=True),
    }
    return tuple(Panel((heat,), f"{where}: {name}", Axis("token that is seen"), Axis("token that looks")) for name, heat in heats.items())


def _names(point: Found[AttentionMaps]) -> tuple[str, ...]:
    """The token that each row and column begins with, with its place, as names must differ."""
    told = json.loads((point.product / "prompt.json").read_text())
    return tuple(f"{first} {told['tokens'][first].replace('Ġ', '_')}" for first in told["first"])
