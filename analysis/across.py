"""Studies beside each other, of one store or of several: points of one name, their scores, and paired differences to the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.drawing import Cell, Sheet
from analysis.orders import scale
from analysis.paired import Test, holm, test
from analysis.report.verdicts import p_text, shown_metrics
from analysis.results import STDERR, Results


@dataclass(frozen=True)
class Side:
    """One study, as it is called in the table."""

    label: str
    results: Results


def across(sides: Sequence[Side], words: Sequence[str] = ()) -> Sheet:
    """A row per metric and point name that all sides have and that holds all the words; differences to the first side, paired, Holm's p.

    Where each side has one point only, these two are compared whatever they are called. ValueError for fewer than two sides, or where no
    point stands on all of them.
    """
    if len(sides) < 2:
        raise ValueError(f"{len(sides)} study to compare: name two, as in `compare A B` or `compare A B@FOLDER`")
    names = [_names(side, words) for side in sides]
    shared = [name for name in names[0] if all(name in other for other in names[1:])]
    pairs = [(name, [name] * len(sides)) for name in shared]
    if not pairs and all(len(each) == 1 for each in names):
        pairs = [(" / ".join(each[0] for each in names), [each[0] for each in names])]
    if not pairs:
        told = "; ".join(f"{side.label}: {', '.join(each[:3]) or 'none'}" for side, each in zip(sides, names, strict=True))
        raise ValueError(
            f"the studies share no point{f' with {words} in its name' if words else ''} ({told}): compare points of one study each"
        )
    rows = [row for metric in shown_metrics(sides[0].results) for row in _rows(sides, metric, pairs)]
    columns = [heading for side in sides for heading in _headings(side, sides[0])]
    return Sheet(
        name="compare_" + "_".join(side.label for side in sides).replace("/", "_"),
        title=" and ".join(side.label for side in sides),
        caption=_caption(sides, names),
        columns=("point", "metric", *columns),
        rows=tuple(rows),
    )


def _names(side: Side, words: Sequence[str]) -> list[str]:
    table = side.results.points
    return [str(name) for name in table["name"] if all(word in str(name).split() for word in words)]


def _headings(side: Side, first: Side) -> list[str]:
    return [side.label] if side is first else [side.label, f"{side.label} - {first.label}", "p (Holm)"]


def _rows(sides: Sequence[Side], metric: str, pairs: Sequence[tuple[str, list[str]]]) -> list[tuple[str, tuple[Cell, ...]]]:
    """Values, differences and p-values of one metric; nothing where a side was not scored by it."""
    tables = [side.results.points.set_index("name") for side in sides]
    if any(metric not in table for table in tables):
        return []
    factor = scale(sides[0].results, metric)
    tests = [[_test(sides, metric, names, place) for place in range(1, len(sides))] for _, names in pairs]
    corrected = iter(holm([found.p for row in tests for found in row if found]))
    rows = []
    for (label, names), row in zip(pairs, tests, strict=True):
        cells = [Cell(metric)]
        for place, (table, name) in enumerate(zip(tables, names, strict=True)):
            cells.append(_score(float(table[metric][name]), float(table[f"{metric}{STDERR}"][name]), factor))
            if place:
                found = row[place - 1]
                error = None if found is None or found.stderr is None else factor * found.stderr
                cells += [
                    Cell(None if found is None else factor * found.mean, error, _digits(factor)),
                    Cell(p_text(next(corrected)) if found else None),
                ]
        rows.append((label, tuple(cells)))
    return rows


def _test(sides: Sequence[Side], metric: str, names: list[str], place: int) -> Test | None:
    """This side minus the first, over the same documents: only where both were scored by one protocol."""
    rows = [sides[at].results.points.set_index("name").loc[names[at]] for at in (place, 0)]
    if rows[0]["protocol_key"] != rows[1]["protocol_key"]:
        return None
    ours, theirs = (sides[at].results.outcomes(metric).of(str(row["key"])) for at, row in zip((place, 0), rows, strict=True))
    return test(ours, theirs)


def _score(value: float, error: float, factor: float) -> Cell:
    return Cell(None if math.isnan(value) else factor * value, None if math.isnan(error) else factor * error, _digits(factor))


def _digits(factor: float) -> int:
    return 2 if factor == 100 else 4


def _caption(sides: Sequence[Side], names: list[list[str]]) -> str:
    """What is paired, what was left out, and protocols that differ."""
    alone = [f"{len(set(each) - set(names[0]) | set(names[0]) - set(each))}" for each in names[1:]]
    by_name = all(set(each) & set(names[0]) for each in names[1:])
    left = f" {', '.join(alone)} points stand on one side only." if by_name and any(count != "0" for count in alone) else ""
    protocols = [set(side.results.points["protocol_key"].dropna()) for side in sides]
    differ = any(each != protocols[0] for each in protocols[1:])
    warned = " The protocols differ: points of different ones are not paired." if differ else ""
    return (
        "± is the standard error over documents; differences are paired over them, each counting the same, p after Holm within a metric."
        f"{left}{warned}"
    )
