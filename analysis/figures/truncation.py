"""Quality against the share of the delta's singular values that is kept, absolute and relative (P figures 6, 17 b, 18 c and d)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import captions, metrics, runs
from analysis.drawing import Axis, Drawing, Line, Panel, Reference
from analysis.errors import PAIRED, Errors
from analysis.results import Results
from analysis.runs import Run

SHOWS = "quality against the share of singular values of the delta that is kept, absolute and relative to the whole delta"
PAPERS = ("P figure 6", "P figure 17 b", "P figure 18 c", "P figure 18 d")
NEEDS = "points with intervention=truncate: experiment=truncate_1b and its like"
KEPT = Axis("Singular values of the delta kept", "%", limits=(-3, 103))


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel of values and one of shares of the value with the whole delta; ValueError if nothing is truncated or finished."""
    metric = metrics.panels(results.points, settings["metric"])[0]
    captions.one_protocol(results.points)
    table = points(results, metric)
    found = runs.runs(table, ("matrices",) if table["matrices"].nunique() > 1 else ())
    errors = Errors(results, metric)
    whole = [name for run in found if (name := _without_whole(run))]
    factor = metrics.scale(results.points, metric)
    values = Panel(
        tuple(_line(run, metric, errors, factor) for run in found), x=KEPT, y=metrics.axis(results.points, metric, from_zero=True)
    )
    shares = [_line(run, metric, errors, 100 / at) for run in found if (at := _whole(run, metric))]
    relative = Axis(f"{metrics.label(results.points, metric)}, relative to the whole delta", "%", limits=(0, None))
    level = Reference("the whole delta", y=100.0)
    caption = captions.sentences(
        captions.protocol(results.points, [metric]),
        f"Bands: {PAIRED}",
        "0 % is the base in these matrices" if (table["percent"] == 0).any() else "",
        f"No relative curve without the point of 100 %: {'; '.join(whole)}" if whole else "",
        captions.checkpoints(results),
        captions.missing(results.points),
    )
    panels = (values, Panel((level, *shares), x=KEPT, y=relative)) if shares else (values,)
    return Drawing(
        "truncation", captions.title(results, "quality against the singular values kept"), caption, (panels,), panel_size=(4.45, 3.7)
    )


def points(results: Results, metric: str) -> pd.DataFrame:
    """The finished truncated points, with the unedited models of the same checkpoints as those that keep 100 %."""
    table = runs.finished(results, metric)
    truncated = table[table["intervention"] == "truncate"]
    if truncated.empty:
        state = "finished " if (results.points["intervention"] == "truncate").any() else ""
        raise ValueError(f"study {results.name!r} has no {state}truncated point: it needs {NEEDS}")
    unedited = table[table["intervention"] == "none"].drop(columns="matrices").assign(percent=100)
    for each in (truncated, unedited):
        each.attrs = {}  # pandas would compare them
    whole = unedited.merge(truncated[["tuned", "matrices"]].drop_duplicates(), on="tuned")
    both = pd.concat([truncated, whole]).drop_duplicates(["tuned", "matrices", "percent"])
    return both.sort_values("percent", kind="stable")


def _line(run: Run, metric: str, errors: Errors, factor: float) -> Line:
    rows = run.points
    values, band = rows[metric].to_numpy(float), errors.of(rows)
    return Line(run.label, rows["percent"].to_numpy(float), factor * values, run.look, band=factor * band)


def _whole(run: Run, metric: str) -> float:
    """The value with the whole delta; 0 where there is none, or nothing to be relative to."""
    rows = run.points[run.points["percent"] == 100]
    return float(rows[metric].iloc[0]) if len(rows) else 0.0


def _without_whole(run: Run) -> str:
    return "" if (run.points["percent"] == 100).any() else run.label
