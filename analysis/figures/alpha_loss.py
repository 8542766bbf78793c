"""The exponent against the loss along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import watched
from analysis.drawing import Axis, Dots, Drawing, Line, Panel, Values
from analysis.spectral import measure_text
from analysis.watched import Run
from cpt_lab.lifecycle.alphas import spearman

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "the mean exponent over the layers against the training loss, every measurement of a run, with its rank correlation"
PAPERS = ("L figure 18",)
NEEDS = watched.NEEDS


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A line per run in the order of training."""
    found = watched.groups(results)
    alpha = str(settings["alpha"])
    roles = watched.chosen(settings["roles"], found, alpha)
    lines: list[Line | Dots] = []
    said = []
    for group in found:
        for run in group.runs:
            steps, values, losses = along(run, alpha, roles)
            text = tuple(f"step {step:.0f}" for step in steps)
            first = run is group.runs[0]
            lines.append(Line(group.label, values, losses, replace(group.look, marker="", width=1.2), text=text, in_legend=first))
            lines.append(Dots(group.label, values[-1:], losses[-1:], group.look, in_legend=False))
            said.append(f"{run.label} {spearman(values, losses):.2f}")
    panel = Panel(tuple(lines), "", Axis(f"{measure_text(alpha)}, mean of the layers"), Axis("training loss", "nats"))
    caption = (
        f"{watched.roles_text(roles)}; from the second measurement to the last (the marker); the loss is the mean over the batches "
        f"up to it since the one before. Spearman's correlation along the run: {'; '.join(said)}: both change with time, so that a high "
        f"one is no cause. {watched.sources(found, bands=False)}"
    )
    return Drawing("alpha_loss", "Does the exponent follow the loss?", caption, ((panel,),), panel_size=(5.6, 3.6))


def along(run: Run, alpha: str, roles: Sequence[str]) -> tuple[Values, Values, Values]:
    """(steps, mean exponent over the layers, mean loss of the batches since the measurement before), where all are known."""
    table = run.read(alpha)
    values = table.of(roles).mean(axis=1)
    steps, losses = run.loss()
    found = np.array(
        [_mean(losses[(steps > before) & (steps <= at)]) for before, at in zip(table.steps[:-1], table.steps[1:], strict=True)]
    )
    known = np.isfinite(found) & np.isfinite(values[1:])
    return table.steps[1:][known].astype(np.float64), values[1:][known], found[known]


def _mean(values: Values) -> float:
    return float(values.mean()) if len(values) else float("nan")
