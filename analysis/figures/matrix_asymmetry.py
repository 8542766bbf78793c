"""Whether query and key carry what depends on depth, and value and output do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Drawing, Line, Panel, Reference
from analysis.spectral import layer_axis, measure_text, role_text
from analysis.watched import Group, Run
from cpt_lab import lifecycle

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "by matrix type: a layer's stable rank over training, every layer's final compression, and the spread of q and k against v and o"
PAPERS = ("L figure 6",)
NEEDS = watched.NEEDS
RANK = "stable_rank"
LOOKS = (palette.MATRICES["q"], palette.MATRICES["o"])


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per kind of run: two panels of its first seed by matrix type, one of the ratio, the mean over its seeds."""
    found = watched.groups(results)
    roles = watched.chosen(settings["roles"], found, RANK)
    watched.chosen(("q", "k", "v", "o"), found, RANK)  # what is compared
    layer, alpha = int(settings["layer"]), str(settings["alpha"])
    shallowest = min(group.depth for group in found)
    if not 0 <= layer < shallowest:
        raise ValueError(f"layer={layer} is not in every model: give 0 to {shallowest - 1}")
    rows = tuple((_over_time(group.runs[0], layer, roles), _by_layer(group.runs[0], roles), _ratio(group, alpha)) for group in found)
    told = watched.per_group(
        found, lambda run: f"{_final(run, RANK):.2g} of compression, {_final(run, alpha):.2g} of {measure_text(alpha)}"
    )
    return Drawing("matrix_asymmetry", "Which matrices depend on depth?", _caption(found, told), rows, panel_size=(3.6, 2.4))


def _over_time(run: Run, layer: int, roles: Sequence[str]) -> Panel:
    table = run.read(RANK)
    steps = table.steps.astype(np.float64)
    lines = tuple(Line(role_text(role), steps, table.of(role)[:, layer], replace(palette.MATRICES[role], marker="")) for role in roles)
    return Panel(lines, f"{run.label}: layer {layer}", watched.STEPS, Axis("stable rank"))


def _by_layer(run: Run, roles: Sequence[str]) -> Panel:
    table = run.read(RANK)
    layers = np.arange(run.depth, dtype=np.float64)
    lines = tuple(Line(role_text(role), layers, 100 * lifecycle.compression(table, role)[-1], palette.MATRICES[role]) for role in roles)
    return Panel(lines, f"{run.label}: at the end", layer_axis([run.spec.shape]), Axis("compression", "%"))


def _ratio(group: Group, alpha: str) -> Panel:
    """Above 1 where q and k differ more between layers than v and o."""
    marks = []
    for measure, look, name in ((RANK, LOOKS[0], "spread of compression, Q K / V O"), (alpha, LOOKS[1], "spread of exponent, Q K / V O")):
        own = [lifecycle.asymmetry(one, relative=measure == RANK) for one in group.read(measure)]
        marks.append(replace(group.line(own[0].steps, [one.ratio for one in own]), label=name, look=replace(look, marker="", width=1.4)))
    level = Reference("", y=1.0)
    return Panel((level, *marks), f"{group.label}: Q and K / V and O", watched.STEPS, Axis("ratio of deviations over layers", scale="log"))


def _final(run: Run, measure: str) -> float:
    return lifecycle.asymmetry(run.read(measure), relative=measure == RANK).final


def _caption(found: Sequence[Group], told: str) -> str:
    return (
        "Right: standard deviation over the layers, the mean of q and k divided by that of v and o; above 1: q and k depend on depth more. "
        f"At the end: {told}. By matrix type the first seed. {watched.sources(found)}"
    )
