"""Two timescales: compression becomes alike in all layers while exponents go apart and stay apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Drawing, Line, Look, Panel, Reference, Values
from analysis.spectral import layer_axis, measure_text
from analysis.watched import Group, Run
from cpt_lab import lifecycle

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "compression against the exponent: over the layers at the end, and the gradients of both over training"
PAPERS = ("L figure 3",)
NEEDS = watched.NEEDS
RANK = "stable_rank"
COMPRESSION, EXPONENT = palette.MATRICES["q"], palette.MATRICES["o"]


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per kind of run (its first seed by layer, the mean over its seeds over time)."""
    found = watched.groups(results)
    alpha = str(settings["alpha"])
    roles = watched.chosen(settings["roles"], found, alpha)
    rows = tuple((_by_layer(group.runs[0], alpha, roles), *_over_time(group, alpha, roles, int(settings["window"]))) for group in found)
    told = watched.per_group(found, lambda run: _said(run, alpha, roles))
    return Drawing("dissociation", "Do rank and shape of spectra say the same?", _caption(found, roles, told), rows, panel_size=(3.6, 2.4))


def _by_layer(run: Run, alpha: str, roles: Sequence[str]) -> Panel:
    """Both relative to their mean over the layers, where they can be compared."""
    both = lifecycle.dissociation(run.read(RANK), run.read(alpha), roles)
    layers = np.arange(run.depth, dtype=np.float64)
    lines = (
        Line("compression", layers, _relative(both.compression[-1]), COMPRESSION),
        Line(measure_text(alpha), layers, _relative(both.alpha[-1]), EXPONENT),
    )
    level = Reference("", y=100.0)
    return Panel((level, *lines), f"{run.label}: at the end", layer_axis([run.spec.shape]), Axis("relative to the mean of the layers", "%"))


def _over_time(group: Group, alpha: str, roles: Sequence[str], window: int) -> tuple[Panel, Panel]:
    ranks = [lifecycle.compression_gradient(one, roles, window=window) for one in group.read(RANK)]
    alphas = [lifecycle.alpha_gradient(one, roles, window=window) for one in group.read(alpha)]
    zero = Reference("", y=0.0)
    first = replace(group.line(ranks[0].steps, [one.gradient for one in ranks]), label="compression", look=_plain(COMPRESSION))
    second = replace(group.line(alphas[0].steps, [one.span for one in alphas]), label=measure_text(alpha), look=_plain(EXPONENT))
    return (
        Panel((zero, first), f"{group.label}: gradient of the stable rank", watched.STEPS, Axis("first minus last layer")),
        Panel((second,), f"{group.label}: span of the exponent", watched.STEPS, Axis("largest minus smallest layer")),
    )


def _plain(look: Look) -> Look:
    return replace(look, marker="")


def _relative(values: Values) -> Values:
    mean = float(values.mean())
    return 100 * values / mean if mean else np.full(len(values), np.nan)


def _said(run: Run, alpha: str, roles: Sequence[str]) -> str:
    both = lifecycle.dissociation(run.read(RANK), run.read(alpha), roles)
    grew = lifecycle.alpha_gradient(run.read(alpha), roles).strengthening
    return f"{100 * both.compression_spread[-1]:.0f} % and {100 * both.alpha_spread[-1]:.0f} %, {both.correlation:.2f}, {grew:.2f}"


def _caption(found: Sequence[Group], roles: Sequence[str], told: str) -> str:
    return (
        f"{watched.roles_text(roles)}. By layer the first seed. At the end, deviation over the layers of compression and of the exponent "
        f"in percent of their means, Spearman's correlation of both over the layers, and that of the exponent's span with time: {told}. "
        f"{watched.sources(found)}"
    )
