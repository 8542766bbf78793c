"""The spectral lifecycle in numbers: a row per watched run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import watched
from analysis.drawing import Cell, Sheet
from analysis.spectral import measure_text
from analysis.watched import Run
from cpt_lab import lifecycle

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "per run: loss, velocity of the wave, reversal of the compression gradient, range and peak of the exponent, Q and K against V and O"
PAPERS = ("L section 4", "L section 5")
NEEDS = watched.NEEDS
RANK = "stable_rank"
COLUMNS = (
    *("final loss", "steps per layer", "travels", "reversal [step]", "delta alpha", "peak [% of the depth]", "inverted U"),
    *("QK/VO of compression", "QK/VO of alpha", "largest compression [%]"),
)


def build(results: Results, settings: Mapping[str, Any]) -> Sheet:
    """A row per run, with what a person would read off the figures."""
    found = watched.groups(results)
    alpha, window = str(settings["alpha"]), int(settings["window"])
    roles = watched.chosen(settings["roles"], found, alpha)
    rows = tuple((run.label, _cells(run, alpha, roles, window)) for group in found for run in group.runs)
    caption = (
        f"Wave, gradient and {measure_text(alpha)} of {watched.roles_text(roles)}; steps per layer ± standard error of the line through "
        "the arrivals, `travels` if its 95 % interval leaves out 0; QK/VO: deviation over the layers of q and k against v and o. "
        f"{watched.sources(found, bands=False)}"
    )
    return Sheet("lifecycle_table", "The spectral lifecycle of every run", caption, ("run", *COLUMNS), rows)


def _cells(run: Run, alpha: str, roles: Sequence[str], window: int) -> tuple[Cell, ...]:
    ranks, exponents = run.read(RANK), run.read(alpha)
    wave = lifecycle.wave(ranks, roles, window=window)
    reversal = lifecycle.compression_gradient(ranks, roles, window=window).reversal_step
    gradient = lifecycle.alpha_gradient(exponents, roles, window=window)
    _, losses = run.loss()
    return (
        Cell(float(losses[-10:].mean()) if len(losses) else None, digits=3),
        Cell(_known(wave.steps_per_layer), _known(wave.stderr), digits=1),
        Cell("yes" if wave.travels else "no"),
        Cell(_known(reversal), digits=0) if np.isfinite(reversal) else Cell("none"),
        Cell(gradient.delta, digits=3),
        Cell(100 * gradient.peak_depth, digits=0),
        Cell("yes" if gradient.is_inverted_u else "no"),
        Cell(_known(lifecycle.asymmetry(ranks, relative=True).final), digits=2),
        Cell(_known(lifecycle.asymmetry(exponents).final), digits=2),
        Cell(100 * float(wave.largest.max()), digits=0),
    )


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
