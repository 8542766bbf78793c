"""Soups between two models in the plane of two metrics, with the chord and the models trained on mixtures (P figures 7, 17 a, 18 a, b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """The plane of two metrics, or one over the weight, and beside it how far each soup is from the line between the ends.

    ValueError if there is no finished soup of two.
    """
    table = results.points
    names = _metrics(table, settings["x"], settings["y"])
    captions.one_protocol(table)
    paths = _paths(results, names)
    mixtures = _mixtures(results, paths, names)
    beside = tuple(_from_chord(results, paths, name) for name in names)
    caption = captions.sentences(
        captions.protocol(table, names),
        "Bars: standard error over documents; bands: paired standard error of soup - ((1 - w) one + w other) over the same documents",
        "Dotted: the chord between the ends",
        "" if len(names) > 1 else "One task only: no plane",
        "Pentagons: models trained on a mixture" if len(mixtures) else "No model trained on a mixture among these points",
        captions.checkpoints(results),
        captions.missing(table),
    )
    main = _plane(results, paths, mixtures, *names) if len(names) > 1 else _over_weight(results, paths, mixtures, names[0])
    title = captions.title(results, "soups between two models")
    return Drawing("interpolation", title, caption, ((main, *filter(None, beside)),), panel_size=(3.7, 3.6))


def _metrics(table: pd.DataFrame, x: str | None, y: str | None) -> tuple[str, ...]:
    """The two metrics of the plane, or the one there is."""
    first = metrics.panels(table, x)[0]
    tasks = {name.split("/")[0] for name in table.attrs["n"]}
    return metrics.pair(table, x, y) if y or len(tasks) > 1 else (first,)


def _paths(results: Results, names: Sequence[str]) -> list[Path]:
    table = runs.finished(results, *names)
    soups = table[(table["intervention"] == "soup") & table["weight"].notna()]
    if soups.empty:
        state = "finished " if (results.points["intervention"] == "soup").any() else ""
        raise ValueError(f"study {results.name!r} has no {state}soup of two models: it needs {NEEDS}")
    unedited = table[(table["intervention"] == "none") & table["tuned"].isin(soups["tuned"])]
    several = soups["partner_key"].nunique() > soups["partner"].nunique()  # partners of one name
    found = []
    for run in runs.runs(soups, ("partner_which" if several else "partner",), ("tuned", "partner_key")):
        start = unedited[unedited["tuned"].isin(run.points["tuned"])].assign(weight=0.0)
        rows = pd.concat([_plain(run.points), _plain(start)]).drop_duplicates("weight").sort_values("weight")
        found.append(Path(Run(run.label.replace(", with", " with"), run.look, rows), rows["weight"].to_numpy(float), tuple(rows["key"])))
    return found


def _plane(results: Results, paths: list[Path], mixtures: pd.DataFrame, x: str, y: str) -> Panel:
    marks = [mark for path in paths for mark in _in_plane(path, results, x, y)]
    marks += [_marker(results, row, x, y, written=len(mixtures) > 1) for _, row in mixtures.iterrows()]
    return Panel(tuple(marks), x=metrics.axis(results.points, x), y=metrics.axis(results.points, y))


def _over_weight(results: Results, paths: list[Path], mixtures: pd.DataFrame, metric: str) -> Panel:
    factor = metrics.scale(results.points, metric)
    marks: list[Mark] = [Reference(f"trained on {row['mixture']}", y=factor * float(row[metric])) for _, row in mixtures.iterrows()]
    for path in paths:
        values, bars = (factor * path.run.points[name].to_numpy(float) for name in (metric, f"{metric}{STDERR}"))
        first, last = path.end(0.0), path.end(1.0)
        if first is not None and last is not None:
            chord = ((0.0, float(values[first])), (1.0, float(values[last])))
            marks.append(Reference("", chord=chord, look=Look(path.run.look.colour, "dotted", width=1.1)))
        marks.append(Line(path.run.label, path.weights, values, path.run.look, bars=bars))
    return Panel(tuple(marks), x=WEIGHT, y=metrics.axis(results.points, metric))


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
    return errors.combined((key, *ends), (1.0, -(1 - weight), -weight))


def _mixtures(results: Results, paths: list[Path], names: Sequence[str]) -> pd.DataFrame:
    """The unedited tuned models that are no end of any pair, nor trained as one of them is."""
    table = _plain(runs.finished(results, *names))
    ends = {path.keys[place] for path in paths for place in (path.end(0.0), path.end(1.0)) if place is not None}
    tuned = {name for path in paths for name in path.run.points["tuned"]}
    partners = {name for path in paths for name in path.run.points["partner"].dropna()}
    others = (table["intervention"] == "none") & (table["role"] == "tuned") & ~table["tuned"].isin(tuned) & ~table["key"].isin(ends)
    return table[others & ~table["mixture"].isin(partners)].drop_duplicates("key")


def _marker(results: Results, row: pd.Series[float], x: str, y: str, *, written: bool) -> Dots:
    across, up = (metrics.scale(results.points, name) for name in (x, y))
    (at_x, at_y), (error_x, error_y) = (
        tuple(factor * np.array([row[f"{name}{ending}"]], dtype=float) for factor, name in ((across, x), (up, y)))
        for ending in ("", STDERR)
    )
    name = str(row["mixture"])
    return Dots(f"trained on {name}", at_x, at_y, MIXTURE, size=9.0, x_bars=error_x, y_bars=error_y, text=(name,), written=written)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """The rows without what the whole table knows, which pandas would compare."""
    copy = table.copy()
    copy.attrs = {}
    return copy
