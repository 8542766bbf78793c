"""Figures of made-up points for tests: what is drawn, its marks by their labels, and means by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import made_up_points as made
from analysis import figures
from analysis.drawing import Dots, Drawing, Line, Panel, Reference, Sheet
from analysis.results import Results
from cpt_lab.specs import Evaluation

MATH, OTHER = made.tuned(), made.tuned(None, "code_320", code=320)
LONG = made.tuned(made.pretrained(640))


def drawn(name: str, results: Results, **changes: Any) -> Drawing:
    (found,) = figures.build(name, results, changes)
    assert isinstance(found, Drawing)
    return found


def sheet(name: str, results: Results, **changes: Any) -> Sheet:
    found = figures.build(name, results, changes)[0]
    assert isinstance(found, Sheet)
    return found


def shown(root: Path, *specs: Evaluation, leave_out: tuple[str, ...] = ()) -> Results:
    asked = made.study(specs)
    return Results(made.finished(root, asked, leave_out), [asked])


def lines(panel: Panel) -> dict[str, Line]:
    return {mark.label: mark for mark in panel.marks if isinstance(mark, Line)}


def dots(panel: Panel) -> dict[str, Dots]:
    return {mark.label: mark for mark in panel.marks if isinstance(mark, Dots)}


def references(panel: Panel) -> list[Reference]:
    return [mark for mark in panel.marks if isinstance(mark, Reference)]


def mean(spec: Any, metric: str = made.SUMS) -> float:
    return float(made.of(made.outcomes(spec), metric).mean())
