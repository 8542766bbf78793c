"""Language against math over pre-training budgets, CPT budgets and mixes (P figure 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis import captions, metrics, palette, runs
from analysis.drawing import Dots, Drawing, Look, Panel
from analysis.lineage import tokens_text
from analysis.results import STDERR, Results

SHOWS = "two metrics of pre-trained and tuned models against each other: what CPT gains and costs, by budgets and mixes"
PAPERS = ("P figure 1",)
NEEDS = "unedited points (intervention=none) scored on two tasks: mixtures swept with protocol=paper"
ROOM = 0.2  # of the span, for the words beside the last dot
SMALLEST, LARGEST = 5.0, 11.0  # of a dot: the smallest and the largest CPT budget


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """Hollow dots are pre-trained, filled ones tuned, larger ones longer; ValueError if no unedited point has both metrics."""
    table = results.points
    x, y = metrics.pair(table, settings["x"], settings["y"])
    captions.one_protocol(table)
    found = unedited(results, x, y)
    starts = dict(zip(found["start"].unique(), palette.series(list(found["start"].unique())).values(), strict=True))
    budgets = sorted(float(tokens) for tokens in found["cpt_tokens"].dropna().unique())
    marks = [
        _dots(results, rows, (x, y), starts[rows["start"].iloc[0]], budgets)
        for _, rows in found.groupby(["start", "role", "cpt_tokens"], sort=False, dropna=False)
    ]
    caption = captions.sentences(
        captions.protocol(table, [x, y]),
        "Hollow: pre-trained; filled: after CPT; the larger, the more CPT tokens"
        if "base" in set(found["role"])
        else "The larger, the more CPT tokens",
        "Bars: standard error over documents",
        captions.checkpoints(results),
        captions.missing(table),
    )
    across = metrics.scale(table, x) * found[x].to_numpy(float)
    room = replace(metrics.axis(table, x), limits=(None, float(across.max() + ROOM * np.ptp(across)) if np.ptp(across) else None))
    panel = Panel(tuple(marks), x=room, y=metrics.axis(table, y))
    return Drawing("trade_off", captions.title(results, "what CPT gains and costs"), caption, ((panel,),), panel_size=(5.7, 4.4))


def unedited(results: Results, *names: str) -> pd.DataFrame:
    """The finished points that nothing was done to, with a column `start`: the pre-trained model they come from, in words."""
    table = runs.finished(results, *names)
    found = table[table["intervention"] == "none"].drop_duplicates("key").copy()
    found.attrs = {}
    if found.empty:
        raise ValueError(f"study {results.name!r} has no finished point of an unedited model: it needs {NEEDS}")
    columns = [name for name in ("size", "pretrain_tokens") if found[name].nunique(dropna=False) > 1] or ["size", "pretrain_tokens"]
    found["start"] = [runs.called(row, columns) for _, row in found.iterrows()]
    return found.sort_values(["parameters", "pretrain_tokens"], kind="stable")


def _dots(results: Results, rows: pd.DataFrame, names: tuple[str, str], look: Look, budgets: list[float]) -> Dots:
    (x, across), (y, up) = ((name, metrics.scale(results.points, name)) for name in names)
    first = rows.iloc[0]
    tuned = not pd.isna(first["cpt_tokens"])
    share = budgets.index(float(first["cpt_tokens"])) / max(1, len(budgets) - 1) if tuned else 0.0
    label = f"{first['start']}{f', CPT {tokens_text(float(first.cpt_tokens))}' if tuned else ''}"
    return Dots(
        label,
        across * rows[x].to_numpy(float),
        up * rows[y].to_numpy(float),
        replace(look, filled=tuned),
        size=SMALLEST + share * (LARGEST - SMALLEST),
        x_bars=across * rows[f"{x}{STDERR}"].to_numpy(float),
        y_bars=up * rows[f"{y}{STDERR}"].to_numpy(float),
        text=tuple(str(name) for name in rows["mixture"].fillna("pre-trained")),
        written=len(rows) <= 12,
    )
