"""How compression goes through the layers while a model trains: maps of layer by step, and when the front reached each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Dots, Drawing, Heat, Line, Panel
from analysis.spectral import role_text
from analysis.watched import Group, Run
from cpt_lab import lifecycle
from cpt_lab.lifecycle import Trajectory, Wave

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "maps of layer by training step: the share of the stable rank that is lost; and when the front of it reached each layer"
PAPERS = ("L figure 1a", "L figure 20")
NEEDS = watched.NEEDS
MEASURE = "stable_rank"


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


def velocity(wave: Wave) -> str:
    """`0.02 layers per step (40 to 60 steps per layer)`, or that there is no wave."""
    if not np.isfinite(wave.steps_per_layer):
        return "hardly compressed"
    interval = f"95 % {wave.low:.3g} to {wave.high:.3g}" if np.isfinite(wave.low) else "no interval"
    return f"{'travels' if wave.travels else 'no order'}, {wave.steps_per_layer:.3g} steps per layer ({interval})"


def _limits(tables: Sequence[Trajectory], roles: Sequence[str]) -> tuple[float, float]:
    """From the lowest to the highest compression of all maps; around 0 where stable ranks also grew."""
    every = np.concatenate([_percent(table, role).ravel() for table in tables for role in roles])
    every = every[np.isfinite(every)]
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    widest = max(abs(low), abs(high), 1e-9)
    return (-widest, widest) if low < 0 else (0.0, widest)


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
        marks.append(Line(role_text(role), layers, wave.first + wave.steps_per_layer * layers, look, in_legend=False, group=role))
    return Panel(tuple(marks), f"{run.label}: arrival of the front", Axis("layer"), Axis("step of half of a layer's compression"))


def _caption(found: Sequence[Group], waves: Sequence[Mapping[str, Wave]], roles: Sequence[str]) -> str:
    said = "; ".join(
        f"{group.runs[0].label}, {role_text(role)}: {velocity(own[role])}" for group, own in zip(found, waves, strict=True) for role in roles
    )
    several = " Of several seeds the first." if any(len(group.runs) > 1 for group in found) else ""
    return (
        "Compression: 1 - stable rank / stable rank before the first step. A layer's front is where it has half of its own largest "
        f"compression; lines by least squares, without layers that lost less than 2 %. {said}.{several} "
        f"{watched.measured(found)} {watched.sources([Group(one.label, one.look, one.runs[:1]) for one in found])}"
    )
