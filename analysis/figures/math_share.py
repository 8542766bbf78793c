"""Quality against the share of math in the CPT mix, a panel per pre-training budget and metric (P figure 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import captions, metrics, palette
from analysis.drawing import Axis, Drawing, Line, Panel, Reference
from analysis.figures.trade_off import unedited
from analysis.lineage import tokens_text
from analysis.results import STDERR, Results

SHOWS = "quality against the share of math in the CPT mix, a line per CPT budget, a panel per pre-training budget"
PAPERS = ("P figure 8",)
NEEDS = "tuned points (intervention=none) of mixtures of math and text with different shares"
MIXES = ("math", "text", "math+text", "text+math")  # other domains are not between the two
SHARE = Axis("Math in the CPT mix", "%", limits=(-3, 103))


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """Rows are metrics, columns the pre-trained models; ValueError if no two mixes differ in their share of math."""
    table = results.points
    names = metrics.panels(table, settings["metrics"])
    captions.one_protocol(table)
    found = unedited(results, names[0])
    tuned = found[found["cpt_tokens"].notna() & found["domain"].isin(MIXES)].copy()
    tuned["share"] = 100 * tuned["math_tokens"].astype(float) / tuned["cpt_tokens"].astype(float)
    if tuned["share"].nunique() < 2:
        raise ValueError(f"study {results.name!r} has no two finished mixes with different shares of math: it needs {NEEDS}")
    looks = palette.series([tokens_text(float(budget)) for budget in sorted(tuned["cpt_tokens"].unique())])
    starts = list(tuned["start"].unique())
    rows = tuple(
        tuple(_panel(results, tuned[tuned["start"] == start], found, name=name, looks=looks) for start in starts) for name in names
    )
    caption = captions.sentences(
        captions.protocol(table, names), "Bars: standard error over documents", captions.checkpoints(results), captions.missing(table)
    )
    return Drawing("math_share", captions.title(results, "quality against the share of math"), caption, rows, panel_size=(3.3, 2.9))


def _panel(results: Results, tuned: pd.DataFrame, found: pd.DataFrame, *, name: str, looks: Mapping[str, Any]) -> Panel:
    factor, start = metrics.scale(results.points, name), tuned["start"].iloc[0]
    lines = []
    for tokens, of_budget in tuned.dropna(subset=[name]).groupby(tuned["cpt_tokens"].map(tokens_text), sort=False):
        label, rows = str(tokens), of_budget.sort_values("share")
        bars = factor * rows[f"{name}{STDERR}"].to_numpy(float)
        text = tuple(map(str, rows["mixture"]))
        lines.append(
            Line(f"CPT {label}", rows["share"].to_numpy(float), factor * rows[name].to_numpy(float), looks[label], bars=bars, text=text)
        )
    before = found[(found["start"] == start) & found["cpt_tokens"].isna()].dropna(subset=[name])
    level = [Reference("before CPT", y=factor * float(before[name].iloc[0]))] if len(before) else []
    return Panel((*level, *lines), title=start, x=SHARE, y=metrics.axis(results.points, name))
