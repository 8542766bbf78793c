"""Which watched training runs a figure of the spectral lifecycle is made of, what they are called, and which of them differ by a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from analysis import palette
from analysis.drawing import Axis, Line, Look, Values
from analysis.lineage import tokens_text
from analysis.spectral import distinguished, role_text, short_key
from cpt_lab import lifecycle
from cpt_lab.lifecycle import Trajectory
from cpt_lab.names import unknown
from cpt_lab.specs import Checkpoint, Spec, SpectralWarmup, TrainedCheckpoint, closure, key

if TYPE_CHECKING:
    from analysis.results import Results

NEEDS = "training runs that were watched (watch.every=25; experiments lifecycle_*)"
STEPS = Axis("training step")
SEED = "seed"


@dataclass(frozen=True)
class Run:
    """A finished training run with the table of its spectra."""

    label: str
    spec: TrainedCheckpoint
    product: Path
    known: dict[str, Trajectory] = field(default_factory=dict, repr=False, compare=False)  # what was read of it

    @property
    def depth(self) -> int:
        return self.spec.shape.num_layers

    @property
    def is_warmed_up(self) -> bool:
        return isinstance(self.spec.start, SpectralWarmup)

    @property
    def is_random_start(self) -> bool:
        return self.spec.start is None

    def read(self, measure: str) -> Trajectory:
        """The trajectory of a measure; ValueError if the run was watched without it."""
        if measure not in self.known:
            measures = lifecycle.measures(self.product)
            if measure not in measures:
                raise ValueError(f"{self.label} was watched without {measure}: {unknown('measure', measure, measures)}")
            self.known[measure] = lifecycle.read(self.product, measure)
        return self.known[measure]

    def loss(self) -> tuple[Values, Values]:
        """(steps, training loss of each), as far as they were logged."""
        lines = [json.loads(line) for line in (self.product / "metrics.jsonl").read_text().splitlines()]
        known = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        found = np.array(known, dtype=np.float64).reshape(-1, 2)
        return found[:, 0], found[:, 1]


@dataclass(frozen=True)
class Group:
    """Runs that differ by nothing but their seeds."""

    label: str
    look: Look
    runs: tuple[Run, ...]

    @property
    def depth(self) -> int:
        return self.runs[0].depth

    @property
    def is_warmed_up(self) -> bool:
        return self.runs[0].is_warmed_up

    @property
    def is_random_start(self) -> bool:
        return self.runs[0].is_random_start

    def read(self, measure: str) -> list[Trajectory]:
        """One per run, at the steps that all of them have."""
        return aligned([run.read(measure) for run in self.runs])

    def line(self, x: ArrayLike, values: Sequence[Values]) -> Line:
        """The mean over the seeds, with their standard deviation as a band."""
        mean, band = over_seeds(values)
        return Line(self.label, np.asarray(x, dtype=np.float64), mean, replace(self.look, marker=""), band=band)


def groups(results: Results) -> list[Group]:
    """The watched runs that points are, or are made from, shallow ones and random starts first; ValueError if there is none."""
    found = runs(results)
    alike: dict[str, list[Run]] = {}
    for run in found:
        alike.setdefault(key(_seedless(run.spec)), []).append(run)
    labels = _called([{name: word for name, word in _facets(own[0].spec).items() if name != SEED} for own in alike.values()])
    looks = palette.series(labels)
    return [Group(label, looks[label], tuple(own)) for label, own in zip(labels, alike.values(), strict=True)]


def runs(results: Results) -> list[Run]:
    """Every finished watched run once, called by what it does not have in common with the others; ValueError if there is none."""
    specs = closure([point.spec for study in results.studies for point in study.points])
    found = [spec for spec in specs if isinstance(spec, TrainedCheckpoint) and spec.watch is not None and results.store.is_done(spec)]
    if not found:
        raise ValueError(f"study {results.name!r} has no finished training run with spectra: it needs {NEEDS}")
    found.sort(key=lambda spec: (spec.shape.num_layers, spec.shape.parameters, isinstance(spec.start, SpectralWarmup), spec.recipe.seed))
    labels = _called([_facets(spec) for spec in found])
    return [Run(label, spec, results.store.product(spec)) for label, spec in zip(labels, found, strict=True)]


def aligned(found: Sequence[Trajectory]) -> list[Trajectory]:
    """The same trajectories at the steps that they share; ValueError if there is none."""
    shared = reduce(np.intersect1d, [one.steps for one in found])
    if not len(shared):
        raise ValueError("these runs were measured at no common step: they are not drawn as seeds of one another")
    kept = [np.isin(one.steps, shared) for one in found]
    return [Trajectory(one.measure, one.steps[at], one.tokens[at], one.roles, one.values[at]) for one, at in zip(found, kept, strict=True)]


def over_seeds(values: Sequence[Values]) -> tuple[Values, Values | None]:
    """Mean and standard deviation over seeds, place by place; no deviation of a single one."""
    rows = np.stack([np.asarray(one, dtype=np.float64) for one in values])
    return rows.mean(axis=0), (rows.std(axis=0, ddof=1) if len(rows) > 1 else None)


def chosen(asked: Iterable[str] | None, found: Sequence[Group], measure: str) -> tuple[str, ...]:
    """The asked roles, None for all, that every run has; ValueError naming what they have if one is missing."""
    sets = [set(run.read(measure).roles) for group in found for run in group.runs]
    first = found[0].runs[0].read(measure).roles
    present = tuple(role for role in first if all(role in roles for roles in sets))
    wanted = present if asked is None else tuple(asked)
    missing = [role for role in wanted if role not in present]
    if missing or not wanted:
        raise ValueError(f"these runs have the roles {', '.join(present)}, not {', '.join(missing) or 'none'}: choose among them")
    return wanted


def roles_text(roles: Sequence[str]) -> str:
    """`W Q`, `mean of W Q and W K`."""
    words = [role_text(role) for role in roles]
    return words[0] if len(words) == 1 else f"mean of {', '.join(words[:-1])} and {words[-1]}"


def per_group(found: Sequence[Group], said: Callable[[Run], str]) -> str:
    """What is said of every run, run by run, for a caption."""
    return "; ".join(f"{run.label}: {said(run)}" for group in found for run in group.runs)


def sources(found: Sequence[Group], *, bands: bool = True) -> str:
    """How often the runs were measured, what their bands are if there are any, and the runs by label and the start of their hash."""
    every = [run for group in found for run in group.runs]
    sizes = {tokens_text(_tokens(run.spec)) for run in every}
    names = "; ".join(f"{run.label} ({short_key(run.spec)})" for run in every)
    return " ".join(
        filter(None, [_measured(every), _bands(found) if bands else "", f"Runs of {', '.join(sorted(sizes))} tokens: {names}."])
    )


def of_first_seeds(found: Sequence[Group]) -> str:
    """The same where only the first seed of each group is drawn."""
    several = "Of several seeds the first." if any(len(group.runs) > 1 for group in found) else ""
    first = [replace(group, runs=group.runs[:1]) for group in found]
    return " ".join(filter(None, [several, sources(first, bands=False)]))


def _bands(found: Sequence[Group]) -> str:
    seeds = {len(group.runs) for group in found}
    if seeds == {1}:
        return "One seed: no band."
    single = ", none where there is one seed" if 1 in seeds else ""
    return f"Bands: standard deviation over seeds{single}."


def _measured(every: Sequence[Run]) -> str:
    """`Spectra: 31 measurements in 300 steps.`"""
    words = {f"{len(_steps(run))} measurements in {run.spec.steps} steps" for run in every}
    return f"Spectra: {', '.join(sorted(words))}."


def _steps(run: Run) -> Values:
    one = next(iter(run.known)) if run.known else lifecycle.measures(run.product)[0]
    return np.asarray(run.read(one).steps, dtype=np.float64)


def _tokens(spec: TrainedCheckpoint) -> int:
    return spec.steps * spec.recipe.batch_tokens


def _called(facets: Sequence[Mapping[str, str]]) -> list[str]:
    """Labels by what differs; a run that only differs by starting from nothing is said to."""
    return [label.replace("the only one", "random start") for label in distinguished(facets)]


def _facets(spec: TrainedCheckpoint) -> Mapping[str, str]:
    """What a run is in words."""
    start = spec.start
    begun = "" if start is None else "CPT"
    if isinstance(start, SpectralWarmup):
        begun = "spectral warm-up" + (f" x {start.scale:g}" if start.scale != 1 else "")
    return {
        "depth": f"{spec.shape.num_layers} layers",
        "model": spec.shape.name,
        "start": begun,
        "mixture": spec.mixture.name,
        "tokens": f"{tokens_text(_tokens(spec))} tokens",
        "lr": f"lr {spec.recipe.lr:g}",
        SEED: f"seed {spec.recipe.seed}",
    }


def _seedless(spec: Checkpoint) -> Checkpoint:
    """The same with all seeds 0, down to what it starts from: what its seeds have in common."""
    if isinstance(spec, SpectralWarmup):
        return spec.but(seed=0, reference=_seedless(spec.reference))
    if not isinstance(spec, TrainedCheckpoint):
        return spec
    changes: dict[str, Any] = {"recipe": spec.recipe.but(seed=0), "mixture": spec.mixture.but(seed=0)}
    start: Spec | None = None if spec.start is None else _seedless(spec.start)
    return spec.but(**changes, start=start)
