"""Soups between two models in the plane of two metrics, with the chord and the models trained on mixtures (P figures 7, 17 a, 18 a, b)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import captions, metrics, runs
from analysis.drawing import Axis, Dots, Drawing, Line, Look, Mark, Panel, Reference, Values
from analysis.errors import Errors
from analysis.results import STDERR, Results
from analysis.runs import Run

SHOWS = "soups between two tuned models in the plane of two metrics, their distance to the chord, and models trained on mixtures"
PAPERS = ("P figure 7", "P figure 17 a", "P figure 18 a", "P figure 18 b")
NEEDS = "points with intervention=soup and two tasks: experiment=soup_math_inst_1b protocol=paper and its like"
WEIGHT = Axis("Weight of the other model", limits=(-0.03, 1.03))
MIXTURE = Look("#00A6B2", marker="p")


@dataclass(frozen=True)
class Path:
    """The soups of one pair of models by weight, both ends among them or not."""

    run: Run
    weights: Values
    keys: tuple[str, ...]

    def end(self, weight: float) -> int | None:
        """Where the soup of this weight stands."""
        at = np.flatnonzero(self.weights == weight)
        return int(at[0]) if len(at) else None


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """The plane, and beside it how far each soup is from the line between the ends; ValueError if there is no finished soup of two."""
    table = results.points
    x, y = metrics.pair(table, settings["x"], settings["y"])
    captions.one_protocol(table)
    paths = _paths(results, x, y)
    mixtures = _mixtures(results, paths, x, y)
    plane = Panel(
        tuple(mark for path in paths for mark in _in_plane(path, results, x, y)) + mixtures,
        x=metrics.axis(table, x),
        y=metrics.axis(table, y),
    )
    beside = tuple(_from_chord(results, paths, name) for name in (x, y))
    caption = captions.sentences(
        captions.protocol(table, [x, y]),
        "Bars: standard error over documents; bands: paired standard error of soup - ((1 - w) one + w other) over the same documents",
        "Dotted: the chord between the ends",
        "Pentagons: models trained on a mixture" if mixtures else "No model trained on a mixture among these points",
        captions.checkpoints(results),
        captions.missing(table),
    )
    return Drawing(
        "interpolation",
        captions.title(results, "soups between two models"),
        caption,
        ((plane, *filter(None, beside)),),
        panel_size=(3.7, 3.6),
    )


def _paths(results: Results, x: str, y: str) -> list[Path]:
    table = runs.finished(results, x, y)
    soups = table[(table["intervention"] == "soup") & table["weight"].notna()]
    if soups.empty:
        state = "finished " if (results.points["intervention"] == "soup").any() else ""
        raise ValueError(f"study {results.name!r} has no {state}soup of two models: it needs {NEEDS}")
    unedited = table[(table["intervention"] == "none") & table["tuned"].isin(soups["tuned"])]
    found = []
    for run in runs.runs(soups, ("partner",)):
        start = unedited[unedited["tuned"].isin(run.points["tuned"])].assign(weight=0.0)
        rows = pd.concat([_plain(run.points), _plain(start)]).drop_duplicates("weight").sort_values("weight")
        found.append(Path(Run(run.label.replace(", with", " with"), run.look, rows), rows["weight"].to_numpy(float), tuple(rows["key"])))
    return found


def _in_plane(path: Path, results: Results, x: str, y: str) -> list[Mark]:
    rows, (across, up) = path.run.points, (metrics.scale(results.points, name) for name in (x, y))
    at = across * rows[x].to_numpy(float), up * rows[y].to_numpy(float)
    bars = across * rows[f"{x}{STDERR}"].to_numpy(float), up * rows[f"{y}{STDERR}"].to_numpy(float)
    text = tuple(f"w = {weight:g}" for weight in path.weights)
    marks: list[Mark] = [
        Line(path.run.label, *at, Look(path.run.look.colour, path.run.look.dash), text=text, in_legend=False, group=path.run.label),
        Dots(path.run.label, *at, path.run.look, x_bars=bars[0], y_bars=bars[1], text=text),
    ]
    first, last = path.end(0.0), path.end(1.0)
    if first is None or last is None:
        return marks
    chord = tuple((float(at[0][place]), float(at[1][place])) for place in (first, last))
    return [Reference("", chord=(chord[0], chord[1]), look=Look(path.run.look.colour, "dotted", width=1.1)), *marks]


def _from_chord(results: Results, paths: list[Path], metric: str) -> Panel | None:
    """soup - ((1 - w) one + w other); None where no pair has both ends."""
    errors, factor = Errors(results, metric), metrics.scale(results.points, metric)
    lines = []
    for path in paths:
        first, last = path.end(0.0), path.end(1.0)
        if first is None or last is None:
            continue
        values = path.run.points[metric].to_numpy(float)
        distance = values - ((1 - path.weights) * values[first] + path.weights * values[last])
        ends = path.keys[first], path.keys[last]
        inner = [_error(errors, key, weight, ends) for key, weight in zip(path.keys, path.weights, strict=True)]
        lines.append(Line(path.run.label, path.weights, factor * distance, path.run.look, band=factor * np.array(inner), in_legend=False))
    unit = "points" if factor == 100 else metrics.unit(results.points, metric)
    axis = Axis(f"{metrics.label(results.points, metric)}, above the chord", unit)
    return Panel((Reference("", y=0.0), *lines), x=WEIGHT, y=axis) if lines else None


def _error(errors: Errors, key: str, weight: float, ends: tuple[str, str]) -> float:
    if weight in (0.0, 1.0):
        return 0.0
    found = errors.combined((key, *ends), (1.0, -(1 - weight), -weight))
    return found if np.isfinite(found) else 0.0


def _mixtures(results: Results, paths: list[Path], x: str, y: str) -> tuple[Mark, ...]:
    """The unedited models that are no end of any pair."""
    table = runs.finished(results, x, y)
    ends = {key for path in paths for place in (path.end(0.0), path.end(1.0)) if place is not None for key in (path.keys[place],)}
    tuned = {name for path in paths for name in path.run.points["tuned"]}
    rows = table[(table["intervention"] == "none") & (table["role"] == "tuned") & ~table["tuned"].isin(tuned) & ~table["key"].isin(ends)]
    rows = rows.drop_duplicates("key")
    across, up = (metrics.scale(results.points, name) for name in (x, y))
    return tuple(
        Dots(
            f"trained on {row['mixture']}",
            across * np.array([row[x]], dtype=float),
            up * np.array([row[y]], dtype=float),
            MIXTURE,
            size=9.0,
            x_bars=across * np.array([row[f"{x}{STDERR}"]], dtype=float),
            y_bars=up * np.array([row[f"{y}{STDERR}"]], dtype=float),
            text=(str(row["mixture"]),),
            written=len(rows) > 1,
        )
        for _, row in rows.iterrows()
    )


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without what the whole table knows, which pandas would compare."""
    copy = table.copy()
    copy.attrs = {}
    return copy
