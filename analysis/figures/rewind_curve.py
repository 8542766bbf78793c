"""Quality against the share of heads, layers or matrices rewound, per criterion and direction (P figures 5 and 15)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis import captions, metrics, palette
from analysis.curves import Curve, curves, references
from analysis.drawing import Drawing, Line, Look, Panel, Reference
from analysis.errors import OVER_DOCUMENTS, PAIRED, Errors
from analysis.results import Results

SHOWS = "quality against the share of heads rewound, a curve per criterion and direction, random orders as mean and deviation"
PAPERS = ("P figure 5", "P figure 15")
NEEDS = "points that rewind by a ranking: experiment=rewind_1b and its like"
PANEL = {1: (5.73, 3.9), 2: (4.45, 3.9)}  # inches, by the number of panels
ERRORS = {"paired": PAIRED, "documents": OVER_DOCUMENTS}
STAGGER = 0.35  # percent: curves of one value must not hide each other's error bars


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A panel per metric; ValueError if nothing is finished, nothing rewound, or the protocols differ."""
    if settings["errors"] not in ERRORS:
        raise ValueError(f"errors={settings['errors']} of rewind_curve: allowed are {' and '.join(ERRORS)}")
    table = results.points
    names = metrics.panels(table, settings["metrics"])
    captions.one_protocol(table)
    drawn = {name: curves(table, name) for name in names}
    panels = tuple(_panel(results, name, of_metric, settings["errors"]) for name, of_metric in drawn.items())
    caption = captions.sentences(
        captions.protocol(table, names),
        _errors_in_words(drawn[names[0]], settings["errors"]),
        captions.checkpoints(results),
        captions.without(*_missing(drawn[names[0]], settings["criteria"])),
        captions.missing(table),
    )
    return Drawing(
        "rewind_curve",
        captions.title(results, "quality against the share rewound"),
        caption,
        (panels,),
        panel_size=PANEL.get(len(panels), (3.8, 3.2)),
    )


def _panel(results: Results, metric: str, drawn: list[Curve], errors: str) -> Panel:
    table, factor = results.points, metrics.scale(results.points, metric)
    known = [curve for curve in drawn if np.isfinite(curve.values).any()]
    looks = palette.series([curve.family for curve in known], palette.CRITERIA)
    paired = _paired(results, metric) if errors == "paired" else None
    lines = [
        _line(
            curve,
            palette.directed(looks[curve.family], curve.direction),
            factor,
            paired=paired,
            shift=STAGGER * (place - (len(known) - 1) / 2),
        )
        for place, curve in enumerate(known)
    ]
    levels = [Reference(name, y=factor * value) for name, value in references(table, metric).items()]
    return Panel((*levels, *lines), x=metrics.fraction_axis(table), y=metrics.axis(table, metric, from_zero=True))


def _line(curve: Curve, look: Look, factor: float, *, paired: dict[str, float] | None, shift: float) -> Line:
    """Bars stand a little beside each other, the ends (the same for all) exactly at 0 and 100."""
    at, mean = 100 * np.array(curve.fractions), factor * curve.mean
    if len(curve.values) > 1:
        return Line(curve.label, at, mean, look, band=factor * curve.spread)
    inside = (at > 0) & (at < 100)
    bars = curve.errors[0] if paired is None else np.array([paired.get(name, np.nan) for name in curve.keys[0]])
    return Line(curve.label, at + shift * inside, mean, look, bars=factor * bars)


def _paired(results: Results, metric: str) -> dict[str, float]:
    """Key -> the paired error of a finished point."""
    table = results.points.drop_duplicates("key")
    table = table[table["fraction"].notna() & table[metric].notna()]
    return dict(zip(table["key"], Errors(results, metric).of(table), strict=True))


def _errors_in_words(drawn: list[Curve], errors: str) -> str:
    """What bars and bands are."""
    random = [len(curve.values) for curve in drawn if curve.criterion == "random"]
    seeds = max(random, default=0)
    words = [f"Bars: {ERRORS[errors]}"]
    if seeds > 1:
        words.append(f"band: standard deviation over {seeds} orders")
    elif random:
        words.append("a single random order, so no band")
    return "; ".join(words)


def _missing(drawn: list[Curve], wanted: list[str] | None) -> list[str]:
    """Criteria without a finished point: of the study, and of those that the settings name."""
    there = {curve.criterion for curve in drawn if np.isfinite(curve.values).any()}
    return [name for name in dict.fromkeys([*(curve.criterion for curve in drawn), *(wanted or ())]) if name not in there]
