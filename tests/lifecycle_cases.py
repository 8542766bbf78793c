"""Studies of the spectral lifecycle for tests: saved, drawn, and their panels by title."""

from __future__ import annotations

from typing import Any

from analysis import figures
from analysis.drawing import Drawing, Line, Panel, Sheet
from analysis.results import Results
from cpt_lab.specs import Spec
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, save


def study(store: Store, specs: dict[str, Spec], name: str = "lifecycle") -> Results:
    made = Study(name=name, points=tuple(Point(name=title, varies={}, config={}, spec=one) for title, one in specs.items()))
    save(store, made)
    return Results(store, [made])


def one(name: str, results: Results, **changes: Any) -> Drawing:
    (found,) = figures.build(name, results, changes)
    assert isinstance(found, Drawing)
    return found


def sheet(name: str, results: Results) -> Sheet:
    (found,) = figures.build(name, results)
    assert isinstance(found, Sheet)
    return found


def panel(drawing: Drawing, title: str) -> Panel:
    (found,) = [panel for panel in drawing.panels if panel.title == title]
    return found


def lines(panel: Panel) -> dict[str, Line]:
    return {mark.label: mark for mark in panel.marks if isinstance(mark, Line)}
