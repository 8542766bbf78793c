"""What the direction of each criterion is worth: the area between its descending and ascending curves (P table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from analysis import captions, metrics, orders
from analysis.curves import Curve, curves
from analysis.drawing import Cell, Sheet
from analysis.orders import Order
from analysis.paired import DRAWS, Test, bootstrap
from analysis.results import Results

SHOWS = "areas under the ascending and descending curve of each criterion and their difference, with paired standard errors"
PAPERS = ("P table 4",)
Row = tuple[Cell, Cell, Cell, Cell, Cell]
NEEDS = "finished curves of a criterion in both directions: experiment=rewind_1b and its like"


def build(results: Results, settings: Mapping[str, Any]) -> Sheet:
    """A row per criterion, largest difference first, columns per study; ValueError if no curve is whole."""
    captions.one_protocol(results.points)
    metric = metrics.panels(results.points, settings["metric"])[0]
    factor = metrics.scale(results.points, metric)
    parts = [Results(results.store, [study]) for study in results.studies] if len(results.studies) > 1 else [results]
    columns = [_columns(part, metric, factor) for part in parts]
    names = list(dict.fromkeys(name for found in columns for name in found))
    if not names:
        raise ValueError(f"study {results.name!r} has no curve without a gap: it needs {NEEDS}")
    ranked = sorted(names, key=lambda name: -_first(columns, name))
    empty = (Cell(None),) * 5
    heads = ("AUC ascending", "AUC descending", "AUC-diff", "from", "to")
    return Sheet(
        "auc_diff",
        f"Area between descending and ascending curves, {metric}",
        captions.sentences(
            captions.protocol(results.points, [metric]),
            f"In points of the metric{' (percent)' if factor == 100 else ''} times the share of units rewound; ± paired standard error of "
            "AUC-diff over documents, of a mean over seeds their standard deviation",
            f"From, to: 95 % interval of AUC-diff by the percentile bootstrap over documents, each drawn with its outcomes at all "
            f"fractions in both directions, {DRAWS:,} draws",
            captions.missing(results.points),
        ),
        ("criterion", *(f"{head} {part.name}" if len(parts) > 1 else head for part in parts for head in heads)),
        tuple((name.replace("_", " "), tuple(cell for found in columns for cell in found.get(name, empty))) for name in ranked),
    )


def _columns(results: Results, metric: str, factor: float) -> dict[str, Row]:
    """Criterion -> AUC ascending, AUC descending, |difference| and its interval, of the curves without a gap."""
    both = orders.pairs(orders.orders(results, metric))
    whole = [curve for curve in curves(results.points, metric) if np.isfinite(curve.areas()).all()]
    found = {}
    for family in dict.fromkeys(curve.family for curve in whole):
        sides = {curve.direction: curve for curve in whole if curve.family == family}
        cells = [_area(sides.get(direction), factor) for direction in ("ascending", "descending")]
        pair = both.get(family)
        test = orders.difference(*pair) if pair else None
        found[family] = (cells[0], cells[1], _difference(sides, test, factor), *_interval(pair, factor))
    best = max((cells[2].value for cells in found.values() if isinstance(cells[2].value, float)), default=None)
    return {name: (*cells[:2], replace(cells[2], best=cells[2].value == best), *cells[3:]) for name, cells in found.items()}


def _area(curve: Curve | None, factor: float) -> Cell:
    if curve is None:
        return Cell(None)
    areas = factor * curve.areas()
    return Cell(
        float(areas.mean()), float(areas.std(ddof=1)) if len(areas) > 1 else None, note=f"{len(areas)} seeds" if len(areas) > 1 else ""
    )


def _difference(sides: Mapping[str, Curve], test: Test | None, factor: float) -> Cell:
    """P eq. 18 of the mean curves; its error is that of the mean over documents of the difference of their own areas."""
    if len(sides) < 2:
        return Cell(None, note="one direction only")
    areas = {direction: float(curve.areas().mean()) for direction, curve in sides.items()}
    value = factor * abs(areas["descending"] - areas["ascending"])
    if test is None or test.stderr is None:
        return Cell(value)
    return Cell(value, factor * test.stderr, note=f"p = {test.p:.2g}, not corrected, {test.n} documents")


def _interval(pair: tuple[Order, Order] | None, factor: float) -> tuple[Cell, Cell]:
    """Below 0 where the directions may be the other way round; nothing without the documents' own outcomes."""
    if pair is None:
        return Cell(None), Cell(None)
    differences = factor * orders.differences(*pair)
    low, high = bootstrap(differences if differences.mean() >= 0 else -differences)
    return Cell(low), Cell(high)


def _first(columns: list[dict[str, Row]], name: str) -> float:
    value = next((found[name][2].value for found in columns if name in found), None)
    return float(value) if isinstance(value, float) else -1.0
