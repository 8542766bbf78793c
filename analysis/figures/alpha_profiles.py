"""Exponents over the depth of trained models: a line per model, the mean over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, spectral, watched
from analysis.drawing import Axis, Dots, Drawing, Line, Panel, Values
from analysis.spectral import Named, layer_axis, measure_text, places, whole
from analysis.watched import Group
from cpt_lab.lifecycle import alpha_gradient
from cpt_lab.names import unknown
from cpt_lab.specs import key
from cpt_lab.spectra import NAMES

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "a spectral measure by layer at the end of training, and of models from the hub; the highest layer is marked"
PAPERS = ("L figure 2", "L figure 4", "L figure 8", "L figure 21")
NEEDS = f"{watched.NEEDS}, or tables of the weights of a checkpoint (experiments prune_MODEL)"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """One panel of watched runs and of tables of checkpoints that were not watched; ValueError if there is neither."""
    measure, asked = str(settings["measure"]), settings["roles"]
    if measure not in NAMES:
        raise ValueError(unknown("spectral measure", measure, NAMES))
    found = _watched(results)
    tables = _tables(results, measure, {key(run.spec) for group in found for run in group.runs})
    if not found and not tables:
        raise ValueError(f"study {results.name!r} has no {measure} of a checkpoint's weights: it needs {NEEDS}")
    axis = layer_axis([*(group.runs[0].spec.shape for group in found), *(one.shape for one in tables)])
    marks: list[Line | Dots] = []
    for group in found:
        roles = watched.chosen(asked, [group], measure)
        line = group.line(*_profile(group, measure, roles, int(settings["last"]), axis))
        marks += [line, _peak(line)]
    looks = palette.series([one.label for one in tables], {group.label: group.look for group in found})
    for one in tables:
        layers, values = _of_table(one, measure, asked)
        line = Line(one.label, places(layers, one.shape.num_layers, axis), values, looks[one.label])
        marks += [line, _peak(line)]
    panel = Panel(tuple(marks), "", axis, Axis(measure_text(measure), spectral.UNITS.get(measure, "")))
    title = f"{measure_text(measure).capitalize()} over the depth"
    return Drawing("alpha_profiles", title, _caption(found, tables, settings), ((panel,),), panel_size=(5.6, 3.6))


def _watched(results: Results) -> list[Group]:
    """The groups of watched runs, none if there are only tables."""
    try:
        return watched.groups(results)
    except ValueError:
        return []


def _tables(results: Results, measure: str, without: set[str]) -> list[Named]:
    found = {key(one.spec.checkpoint): one for one in results.tables if one.spec.against is None and measure in one.spec.measures}
    kept = [one for name, one in found.items() if name not in without]
    return spectral.named(kept) if kept else []


def _profile(group: Group, measure: str, roles: Sequence[str], last: int, axis: Axis) -> tuple[Values, list[Values]]:
    layers = places(np.arange(group.depth, dtype=np.float64), group.depth, axis)
    return layers, [alpha_gradient(one, roles, last=last).profile for one in group.read(measure)]


def _of_table(one: Named, measure: str, asked: Sequence[str] | None) -> tuple[Values, Values]:
    """(layers, mean over roles): of whole matrices, or of a role's heads where these alone were measured."""
    table = one.table()
    columns = []
    for role in spectral.chosen_roles(asked, [one]):
        try:
            rows = whole(table, role)
        except ValueError:
            rows = spectral.of_role(table, role)
        columns.append(rows.groupby("layer")[measure].mean())
    layers = columns[0].index.to_numpy(np.float64)
    return layers, np.mean([column.to_numpy(np.float64) for column in columns], axis=0)


def _peak(line: Line) -> Dots:
    known = np.isfinite(line.y)
    at = [int(np.nanargmax(line.y))] if known.any() else []
    return Dots(line.label, line.x[at], line.y[at], replace(line.look, marker="o", filled=True), in_legend=False, group=line.label)


def _caption(found: Sequence[Group], tables: Sequence[Named], settings: Mapping[str, Any]) -> str:
    roles = "all roles" if settings["roles"] is None else watched.roles_text(list(settings["roles"]))
    own = f"Watched runs: median of the last {settings['last']} measurements. {watched.sources(found)}" if found else ""
    others = f"Tables (mean over heads where whole matrices were not measured): {spectral.sources(tables)}." if tables else ""
    return " ".join(filter(None, [f"Of {roles}. A dot is the highest layer.", own, others]))
