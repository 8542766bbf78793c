"""Tuned models beside themselves with the singular values of the base (P figure 14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis import captions, metrics, palette, runs
from analysis.drawing import Axis, Dots, Drawing, Look, Panel
from analysis.errors import PAIRED, Errors
from analysis.results import STDERR, Results

SHOWS = "tuned models beside themselves with the singular values of another checkpoint, and that checkpoint"
PAPERS = ("P figure 14",)
NEEDS = "points with intervention=none and intervention=transplant: experiment=transplant_1b"
WIDTH = 1.05  # inches of a place, for the words below it
LOOKS = {"tuned": palette.ROLES["tuned"], "transplanted": Look("#D55E00", marker="*"), "base": palette.ROLES["base"]}


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per metric, a place per model; ValueError if nothing is transplanted or finished."""
    table = results.points
    names = metrics.panels(table, settings["metrics"])
    captions.one_protocol(table)
    done = runs.finished(results, names[0])
    moved = done[done["intervention"] == "transplant"]
    if moved.empty:
        state = "finished " if (table["intervention"] == "transplant").any() else ""
        raise ValueError(f"study {results.name!r} has no {state}transplanted point: it needs {NEEDS}")
    plain = done[done["intervention"] == "none"]
    own = plain[plain["tuned"].isin(moved["tuned"])]
    places = {label: tuple(run["tuned"].unique()) for label, run in ((run.label, run.points) for run in runs.runs(moved))}
    panels = tuple(
        _panel(results, name, places, {"tuned": own, "transplanted": moved, "base": plain[plain["role"] == "base"]}) for name in names
    )
    caption = captions.sentences(
        captions.protocol(table, names),
        f"Bars: of transplanted models {PAIRED}, of the others standard error over documents",
        f"Singular values of {', '.join(dict.fromkeys(map(str, moved['source'])))}",
        "" if len(own) else "The tuned models themselves are not among these points",
        captions.checkpoints(results),
        captions.missing(table),
    )
    return Drawing(
        "transplantation",
        captions.title(results, "transplanted singular values"),
        caption,
        (panels,),
        panel_size=(max(3.8, WIDTH * len(places)), 3.3),
    )


def _panel(results: Results, metric: str, places: Mapping[str, tuple[str, ...]], kinds: Mapping[str, pd.DataFrame]) -> Panel:
    factor, marks = metrics.scale(results.points, metric), []
    at = {tuned: place for place, names in enumerate(places.values()) for tuned in names}
    errors = Errors(results, metric)
    for kind, given in kinds.items():
        rows = given.dropna(subset=[metric])
        x = np.array(
            [
                at.get(name, 0) if kind != "base" else _nearest(row, places, kinds)
                for name, (_, row) in zip(rows["tuned"], rows.iterrows(), strict=True)
            ],
            dtype=float,
        )
        bars = errors.of(rows) if kind == "transplanted" else rows[f"{metric}{STDERR}"].to_numpy(float)
        if len(rows):
            label = {"transplanted": "with transplanted singular values"}.get(kind, kind)
            marks.append(
                Dots(
                    label,
                    x,
                    factor * rows[metric].to_numpy(float),
                    LOOKS[kind],
                    y_bars=factor * bars,
                    size=9.0 if kind == "transplanted" else 7.0,
                )
            )
    ticks = tuple((float(place), label.replace(", ", ",\n")) for place, label in enumerate(places))
    return Panel(tuple(marks), x=Axis("", ticks=ticks, limits=(-0.6, len(places) - 0.4)), y=metrics.axis(results.points, metric))


def _nearest(row: pd.Series[float], places: Mapping[str, tuple[str, ...]], kinds: Mapping[str, pd.DataFrame]) -> int:
    """The place of the first transplanted model of the same model and pre-training; the first place if there is none."""
    moved = kinds["transplanted"]
    alike = moved[(moved["model"] == row["model"]) & (moved["pretrain_tokens"].map(str) == str(row["pretrain_tokens"]))]
    names = set(alike["tuned"])
    return next((place for place, tuned in enumerate(places.values()) if names.intersection(tuned)), 0)
