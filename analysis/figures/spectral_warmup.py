"""What a start with the singular values of a trained model changes: loss, exponent and stable rank beside the start from chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette, watched
from analysis.drawing import Axis, Drawing, Line, Look, Panel, Values
from analysis.spectral import measure_text
from analysis.watched import Group, Run
from cpt_lab.specs import SpectralWarmup, key

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "training from a spectral warm-up beside the same from random weights: loss, and spectral measures averaged over the layers"
PAPERS = ("L appendix F",)
NEEDS = "watched runs from both starts (pretrain.start=random,spectral_warmup; experiments lifecycle_*)"
RANDOM, WARM = palette.ROLES["base"], palette.ROLES["edited"]


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per pair of starts; ValueError if there is none."""
    found = watched.groups(results)
    pairs = [(own, group) for group in found if group.is_warmed_up if (own := _reference(group, found)) is not None]
    if not pairs:
        raise ValueError(f"study {results.name!r} has no spectral warm-up beside the run that it is from: it needs {NEEDS}")
    measures = list(settings["measures"])
    for measure in measures:
        watched.chosen(settings["roles"], found, measure)
    window = int(settings["batches"])
    rows = tuple((_losses(*pair, window), *(_measure(*pair, name, settings["roles"]) for name in measures)) for pair in pairs)
    words = watched.roles_text(list(settings["roles"])) if settings["roles"] else "All matrices"
    caption = (
        f"Loss: running mean over {window} batches. {words}: mean of the layers. {'; '.join(_said(*pair, window) for pair in pairs)}. "
        f"{watched.sources([group for pair in pairs for group in pair])}"
    )
    return Drawing("spectral_warmup", "Is it the spectrum that takes time to learn?", caption, rows, panel_size=(3.6, 2.4))


def running(values: Values, window: int) -> Values:
    """The mean of each value and so many before it, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    found: Values = (sums[ends] - sums[starts]) / (ends - starts)
    return found


def _reference(warm: Group, found: Sequence[Group]) -> Group | None:
    """The group of the run whose spectra a warm-up has."""
    start = warm.runs[0].spec.start
    assert isinstance(start, SpectralWarmup)
    return next((group for group in found if key(start.reference) in {key(run.spec) for run in group.runs}), None)


def _losses(own: Group, warm: Group, window: int) -> Panel:
    lines = tuple(
        Line(name, steps, running(losses, window), _plain(look), in_legend=first, group=name)
        for name, look, group in (("random start", RANDOM, own), ("spectral warm-up", WARM, warm))
        for first, (steps, losses) in ((run is group.runs[0], run.loss()) for run in group.runs)
    )
    return Panel(lines, f"{own.label}: loss", watched.STEPS, Axis("training loss", "nats"))


def _measure(own: Group, warm: Group, measure: str, asked: Sequence[str] | None) -> Panel:
    roles = watched.chosen(asked, [own, warm], measure)
    lines = []
    for name, look, group in (("random start", RANDOM, own), ("spectral warm-up", WARM, warm)):
        tables = group.read(measure)
        line = group.line(tables[0].steps, [one.of(roles).mean(axis=1) for one in tables])
        lines.append(replace(line, label=name, look=_plain(look)))
    return Panel(tuple(lines), f"{own.label}: {measure_text(measure)}", watched.STEPS, Axis(measure_text(measure)))


def _plain(look: Look) -> Look:
    return replace(look, marker="", width=1.4)


def _said(own: Group, warm: Group, window: int) -> str:
    first, second = (np.mean([running(run.loss()[1], window)[-1] for run in group.runs]) for group in (own, warm))
    reached = [_when(run, float(first), window) for run in warm.runs]
    when = f"reached that at step {np.mean(reached):.0f}" if np.isfinite(reached).all() else "did not reach that"
    return f"{own.label}: {first:.3f} at the end from chance, {second:.3f} from the warm-up, which {when}"


def _when(run: Run, level: float, window: int) -> float:
    steps, losses = run.loss()
    there = np.flatnonzero(running(losses, window) <= level)
    return float(steps[there[0]]) if len(there) else float("nan")
