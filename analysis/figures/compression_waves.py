"""How compression goes through the layers while a model trains: maps of layer by step, and when the front reached each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Dots, Drawing, Heat, Line, Panel
from analysis.spectral import layer_axis, role_text
from analysis.watched import Group, Run
from cpt_lab import lifecycle
from cpt_lab.lifecycle import Trajectory, Wave

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "maps of layer by training step: the share of the stable rank that is lost; and when the front of it reached each layer"
PAPERS = ("L figure 1a", "L figure 20")
NEEDS = watched.NEEDS
MEASURE = "stable_rank"
WHOLE = 100.0


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per run (the first seed of each), a map per role, all on one scale, and the arrivals with their lines."""
    found = watched.groups(results)
    roles = watched.chosen(settings["roles"], found, MEASURE)
    tables = [group.runs[0].read(MEASURE) for group in found]
    limits = _limits(tables, roles)
    waves = [{role: lifecycle.wave(table, role, window=int(settings["window"])) for role in roles} for table in tables]
    rows = tuple(
        (*(_map(group.runs[0], table, role, limits) for role in roles), _arrivals(group.runs[0], own, roles))
        for group, table, own in zip(found, tables, waves, strict=True)
    )
    title = "Does compression travel through the layers?"
    return Drawing("compression_waves", title, _caption(found, waves, roles), rows, panel_size=(3.0, 2.2))


def _limits(tables: Sequence[Trajectory], roles: Sequence[str]) -> tuple[float, float]:
    """All of the stable rank is 100 %; around 0 where stable ranks also grew."""
    return (-WHOLE, WHOLE) if any((_percent(table, role) < 0).any() for table in tables for role in roles) else (0.0, WHOLE)


def _percent(table: Trajectory, role: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return 100 * lifecycle.compression(table, role)


def _map(run: Run, table: Trajectory, role: str, limits: tuple[float, float]) -> Panel:
    columns = tuple(str(step) for step in table.steps)
    cells = _percent(table, role).T
    heat = Heat(cells, columns=columns, label="compression [%]", limits=limits, diverging=limits[0] < 0)
    return Panel((heat,), f"{run.label}: {role_text(role)}", watched.STEPS, Axis("layer"))


def _arrivals(run: Run, waves: Mapping[str, Wave], roles: Sequence[str]) -> Panel:
    layers = np.arange(run.depth, dtype=np.float64)
    marks: list[Dots | Line] = []
    for role in roles:
        wave, look = waves[role], palette.MATRICES[role]
        marks.append(Dots(role_text(role), layers, wave.arrivals, look, group=role))
        line = wave.first + wave.steps_per_layer * layers
        marks.append(Line(role_text(role), layers, line, replace(look, marker=""), in_legend=False, group=role))
    return Panel(tuple(marks), f"{run.label}: arrival of the front", layer_axis([run.spec.shape]), Axis("arrival", "step"))


def _caption(found: Sequence[Group], waves: Sequence[Mapping[str, Wave]], roles: Sequence[str]) -> str:
    pairs = [(group.runs[0].label, role, own[role]) for group, own in zip(found, waves, strict=True) for role in roles]
    travelling = [
        f"{label}, {role_text(role)}: {wave.steps_per_layer:.3g} steps per layer ({wave.low:.3g} to {wave.high:.3g})"
        for label, role, wave in pairs
        if wave.travels
    ]
    front = f"A front travels, by its 95 % interval: {'; '.join(travelling)}" if travelling else "No front travels"
    return (
        "Compression: 1 - stable rank / stable rank before the first step; below zero it grew. A layer's front is where it has half of its "
        f"own largest compression; lines by least squares, without layers that lost less than 2 %. {front}; of {len(pairs)} looked at. "
        f"{watched.of_first_seeds(found)}"
    )
