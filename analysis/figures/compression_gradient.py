"""Which end of the model is compressed further, and when that turns round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis import watched
from analysis.drawing import Axis, Drawing, Panel, Reference
from analysis.watched import Group
from cpt_lab import lifecycle
from cpt_lab.lifecycle import CompressionGradient

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "over training: stable rank of the first layers minus that of the last, and the slope of compression over the depth"
PAPERS = ("L figure 1b", "L figure 7", "L figure 19")
NEEDS = watched.NEEDS
MEASURE = "stable_rank"


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A line per kind of run, the mean over its seeds."""
    found = watched.groups(results)
    roles = watched.chosen(settings["roles"], found, MEASURE)
    gradients = [
        [
            lifecycle.compression_gradient(one, roles, ends=int(settings["ends"]), window=int(settings["window"]))
            for one in group.read(MEASURE)
        ]
        for group in found
    ]
    zero = Reference("", y=0.0)
    first = tuple(group.line(own[0].steps, [one.gradient for one in own]) for group, own in zip(found, gradients, strict=True))
    second = tuple(group.line(own[0].steps, [100 * one.slope for one in own]) for group, own in zip(found, gradients, strict=True))
    panels = (
        Panel((zero, *first), "ends of the model", watched.STEPS, Axis("stable rank, first minus last layers, less its start")),
        Panel((zero, *second), "slope over the depth", watched.STEPS, Axis("slope of compression from first to last layer", "%")),
    )
    title = "Which layers are compressed further, and does that reverse?"
    return Drawing(
        "compression_gradient", title, _caption(found, gradients, roles, int(settings["ends"])), (panels,), panel_size=(4.45, 3.4)
    )


def _caption(found: Sequence[Group], gradients: Sequence[Sequence[CompressionGradient]], roles: Sequence[str], ends: int) -> str:
    flat = [
        f"{run.label} {reversal(one)}"
        for group, own in zip(found, gradients, strict=True)
        for run, one in zip(group.runs, own, strict=True)
    ]
    return (
        f"{watched.roles_text(roles)}; {ends} layer{'s' if ends > 1 else ''} at either end. Below zero: early layers are compressed "
        f"further than late ones. Reversal: {'; '.join(flat)}. {watched.sources(found)}"
    )


def reversal(one: CompressionGradient) -> str:
    return f"at step {one.reversal_step:.0f} (lowest {one.extreme:.3g} at {one.extreme_step})" if one.reverses else "none"
