"""Attention entropies of models and their edits: read once, paired prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.captions import missing, sentences, short
from analysis.drawing import Values
from analysis.edited import REPLACED, ROTATED, Group, groups, same
from cpt_lab.evaluation.statistics import standard_error
from cpt_lab.specs import AttentionEntropy, key

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Found, Results

NEEDS = "attention entropies of a tuned model as it is and edited (target=attention_entropy intervention=none,transplant)"
COLUMNS = {"last": "entropy", "all": "entropy_mean"}  # of which positions: the last one, before the answer begins, or all


@dataclass(frozen=True)
class ByLayer:
    """Mean entropy over heads and prompts by layer; with the untouched model the paired standard error of the difference to it."""

    layers: Values
    mean: Values
    error: Values | None  # None for the untouched model, and of a single prompt
    prompts: int


def found(results: Results) -> list[Group[AttentionEntropy]]:
    """The models with their edits; ValueError for none, and for prompts of several kinds."""
    grouped = groups(results, AttentionEntropy, (*REPLACED, *ROTATED), needs=NEEDS)
    same([point.spec.prompts for group in grouped for _, point in group.every], "sets of prompts")
    return grouped


def column(positions: str) -> str:
    """The column of a table for this setting; ValueError for another."""
    if positions not in COLUMNS:
        raise ValueError(f"positions={positions}: choose last (before the answer begins) or all (the mean over the prompt)")
    return COLUMNS[positions]


def read(point: Found[AttentionEntropy]) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(point.product / "table.parquet")


def by_layer(table: pd.DataFrame, original: pd.DataFrame | None, name: str) -> ByLayer:
    """Of one model, paired with the untouched one by prompt."""
    own = _by_prompt(table, name)
    layers, error = own.columns.to_numpy(np.float64), None
    if original is not None and len(own) > 1:
        differences = own - _by_prompt(original, name)
        error = np.array([standard_error(differences[layer]) for layer in differences], dtype=np.float64)
    return ByLayer(layers, own.mean().to_numpy(np.float64), error, len(own))


def by_head(table: pd.DataFrame, name: str) -> Values:
    """(layers, heads): the mean over the prompts."""
    return table.pivot_table(index="layer", columns="head", values=name, aggfunc="mean").to_numpy(np.float64)


def caption(results: Results, grouped: list[Group[AttentionEntropy]], positions: str) -> str:
    """Which prompts, which positions, which points."""
    prompts = grouped[0].every[0][1].spec.prompts
    points = "; ".join(f"{group.label}, {text} ({short(key(point.spec))})" for group in grouped for text, point in group.every)
    where = "the last position, before the answer begins" if positions == "last" else "all positions of the prompt"
    task = prompts.task or prompts.protocol.tasks[0].name
    return sentences(
        f"{prompts.count} prompts of {task} ({prompts.protocol.name} {short(key(prompts.protocol))}); mean over {where}",
        missing(results.points),
        points,
    )


def _by_prompt(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row per prompt, a column per layer: the mean over the heads."""
    return table.pivot_table(index="prompt", columns="layer", values=name, aggfunc="mean")
