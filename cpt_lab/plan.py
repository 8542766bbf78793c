"""What is missing, why, in which order, at what cost, in which packs: pure functions of specs and what is known of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import get_args

from cpt_lab import disk, specs
from cpt_lab.disk import Written
from cpt_lab.execution import Execution
from cpt_lab.packs import by_edit, pack
from cpt_lab.rates import CPU, H100, Rates, Source
from cpt_lab.site import StageName
from cpt_lab.specs import Spec, Unit, key, settled
from cpt_lab.store import State, Status
from cpt_lab.study import Point

STAGES: tuple[StageName, ...] = get_args(StageName)
PACKED = ("spectra", "tables", "probe", "evaluate")  # the stages whose steps are shared out to workers beforehand
ONE_TASK_EACH = frozenset({"pretrain", "cpt"})
USUAL = Execution()
GUESSED_PACKS = 8  # of a stage at least, while nothing was measured: a model of FLOPs and bytes may be far off
ON_GPU = frozenset({"pretrain", "cpt", "spectra", "probe", "evaluate"})
STAGE_OF: dict[type[Spec], str] = {
    specs.BuiltinCorpus: "data",
    specs.FilesCorpus: "data",
    specs.HubCorpus: "data",
    specs.TokenFilesCorpus: "data",
    specs.BpeTokenizer: "data",
    specs.HubTokenizer: "data",
    specs.Tokens: "data",
    specs.Contamination: "data",
    specs.Protocol: "data",
    specs.HubCheckpoint: "data",
    specs.FolderCheckpoint: "data",
    specs.OlmoCoreCheckpoint: "data",
    specs.TrainedCheckpoint: "cpt",
    specs.Intermediate: "cpt",
    specs.SpectralWarmup: "cpt",
    specs.SpectralPart: "spectra",
    specs.SpectralColumns: "tables",
    specs.Spectra: "tables",
    specs.Fingerprint: "spectra",
    specs.Rotations: "spectra",
    specs.Ranking: "rank",
    specs.Correlation: "rank",
    specs.AttentionEntropy: "evaluate",
    specs.AttentionMaps: "evaluate",
    specs.LayerSimilarity: "evaluate",
    specs.Patched: "evaluate",
    specs.Evaluation: "evaluate",
}


@dataclass(frozen=True)
class Step:
    """A spec that has to be built, with the reason and what it costs."""

    spec: Spec
    key: str
    stage: str
    reason: str
    state: State
    seconds: float  # on one device
    on_gpu: bool
    source: Source  # of its seconds
    written: tuple[Written, ...]

    @property
    def gpu_hours(self) -> float:
        """Of this launch: what another one builds now is not paid for here."""
        return self.seconds / 3600 if self.on_gpu and self.state is not State.RUNNING else 0.0


@dataclass(frozen=True)
class Plan:
    """The work of a launch. A point whose ranking is not known yet counts as one step, though it may turn out to be done."""

    points: tuple[Point, ...]
    resolved: Mapping[str, Spec]  # the spec whose result is the point's, as far as its ranking is known, by name
    states: Mapping[str, State]  # of every point, by name
    steps: tuple[Step, ...]  # to do, needs before what needs them; what several points share stands once
    packs: tuple[tuple[str, ...], ...]  # keys of the steps of every stage of PACKED, one stage after the other, by worker
    rates: Rates = H100
    workers: int = 1  # at a time, at most
    most_tasks: int | None = None  # of a stage at a time where each stage has tasks of its own; None: the same workers do all stages
    devices: Mapping[str, int] = field(default_factory=dict)  # stage -> how many train one of its runs together, where it is not one

    @property
    def done(self) -> tuple[str, ...]:
        """Names of the points whose result is there."""
        return tuple(name for name, state in self.states.items() if state is State.DONE)

    @property
    def todo(self) -> int:
        return len(self.steps)

    @property
    def gpu_hours(self) -> float:
        return sum(step.gpu_hours for step in self.steps)

    @property
    def hours(self) -> float:
        """Of one device, GPU or not, that does everything."""
        return sum(step.seconds for step in self.steps if step.state is not State.RUNNING) / 3600

    @property
    def room(self) -> dict[str, int]:
        """What -> bytes, as far as a disk notices, when most of it is written and not yet gone."""
        stages = self.stages().items()
        return disk.fullest((self._at_once(stage, steps), [step.written for step in steps]) for stage, steps in stages)

    @property
    def kept(self) -> int:
        """Bytes that will be there when all is done."""
        return sum(part.bytes for step in self.steps for part in step.written if part.stays)

    def timed(self, source: Source) -> int:
        """How many steps have their seconds from there."""
        return sum(step.source == source for step in self.steps)

    def counts(self) -> dict[str, int]:
        """How many points are done, built by another launch now, waiting for something that failed, and still to do."""
        named = {State.DONE: "done", State.RUNNING: "running elsewhere", State.BLOCKED: "blocked before"}
        found = Counter(named.get(state, "to do") for state in self.states.values())
        return {name: found[name] for name in ("done", "running elsewhere", "to do", "blocked before") if found[name]}

    def stages(self) -> dict[str, list[Step]]:
        """The stages that have work, in order."""
        by_stage: dict[str, list[Step]] = {stage: [] for stage in STAGES}
        for step in self.steps:
            by_stage[step.stage].append(step)
        return {stage: steps for stage, steps in by_stage.items() if steps}

    def wall_hours(self, workers: int) -> float:
        """With so many workers at a time, stage after stage: the longest task, or all of them shared evenly, whichever is more."""
        return sum(self._stage_seconds(stage, steps, workers) for stage, steps in self.stages().items()) / 3600

    def _at_once(self, stage: str, steps: list[Step]) -> int:
        if self.most_tasks is None:
            return self.workers
        return min(tasks(stage, [step.spec for step in steps], self.packs), self.most_tasks)

    def _stage_seconds(self, stage: str, steps: list[Step], workers: int) -> float:
        total = sum(step.seconds for step in steps)
        if stage in ONE_TASK_EACH:
            return max(total / workers, max(step.seconds for step in steps)) / self.devices.get(stage, 1)
        if stage in PACKED:
            return max(total / min(workers, tasks(stage, [step.spec for step in steps], self.packs)), max(step.seconds for step in steps))
        return total


def make(
    points: Sequence[Point],
    *,
    status: Callable[[Spec], Status],
    orders: Mapping[str, tuple[Unit, ...]],
    workers: int,
    rates: Rates = H100,
    pack_minutes: float | None = None,
    how: Execution = USUAL,
    most_tasks: int | None = None,
    kept: Callable[[specs.Intermediate], bool | None] = lambda _: None,
) -> Plan:
    """The plan for these points, given what `status` knows of every spec and the finished rankings.

    Each stage is packed for so many workers, or, with `pack_minutes`, into as many packs as take about so long. With `most_tasks` each
    stage has tasks of its own, so many of which run at once. `kept` says of weights on the way whether their run, if it is done, has them.
    """
    wanted = {point.name: settled(point.spec, dict(orders)) for point in points}
    states = _States(status)
    known = {name: states.of(spec).state for name, spec in wanted.items()}
    missing = _missing(list(wanted.values()), states)
    before = {key(probe) for probe in probes(missing)}
    least = disk.budgets(missing)
    steps = tuple(
        _step(
            spec,
            "probe" if key(spec) in before else stage_of(spec),
            states.of(spec),
            rates,
            disk.written(spec, how, least=least.get(key(spec), 0), kept=kept(spec) if isinstance(spec, specs.Intermediate) else None),
        )
        for spec in missing
    )
    places = {key(wanted[point.name]): place for place, point in reversed(list(enumerate(by_edit(points, lambda point: point.spec))))}
    packs = _packs(steps, workers, rates, places, pack_minutes)
    return Plan(tuple(points), wanted, known, steps, packs, rates, workers, most_tasks)


def stage_of(spec: Spec) -> str:
    """The stage that builds a spec; what CPT starts from is trained in a stage before it."""
    run = spec.of if isinstance(spec, specs.Intermediate) else spec
    return "pretrain" if isinstance(run, specs.TrainedCheckpoint) and run.start is None else STAGE_OF[type(run)]


def tasks(stage: str, wanted: Sequence[Spec], packs: Sequence[Sequence[str]]) -> int:
    """How many tasks of its own a stage of these specs has: training runs one each, packs one each, small things one together.

    What a run leaves on its way takes none: it would hold GPUs while the run is made.
    """
    if stage in ONE_TASK_EACH:
        return max(1, sum(isinstance(spec, specs.TrainedCheckpoint) for spec in wanted))
    inside = set(map(key, wanted)) if stage in PACKED else set()
    return max(1, sum(not inside.isdisjoint(names) for names in packs))


def probes(wanted: Sequence[Spec]) -> list[Spec]:
    """The evaluations that rankings among these read, each once: they come a stage before the rankings, whoever else wants them."""
    rankings = (spec for spec in wanted if isinstance(spec, specs.Ranking))
    found = (need for ranking in rankings for need in ranking.needs() if isinstance(need, specs.Evaluation))
    return list({key(need): need for need in found}.values())


class _States:
    """Each spec's status, asked once."""

    def __init__(self, status: Callable[[Spec], Status]) -> None:
        self._status = status
        self._known: dict[str, Status] = {}

    def of(self, spec: Spec) -> Status:
        name = key(spec)
        if name not in self._known:
            self._known[name] = self._status(spec)
        return self._known[name]


def _missing(wanted: list[Spec], states: _States) -> list[Spec]:
    """What is not done among these and their needs; the needs of what is done are not asked for."""
    found: dict[str, Spec] = {}
    seen: set[str] = set()

    def visit(spec: Spec) -> None:
        name = key(spec)
        if name in seen:
            return
        seen.add(name)
        if states.of(spec).state is State.DONE:
            return
        for need in spec.needs():
            visit(need)
        found[name] = spec

    for spec in wanted:
        visit(spec)
    return list(found.values())


def _packs(
    steps: Sequence[Step], workers: int, rates: Rates, places: Mapping[str, int], pack_minutes: float | None
) -> tuple[tuple[str, ...], ...]:
    """Each worker's share of every packed stage, in the order of the stages."""
    seconds = {step.key: step.seconds for step in steps}
    shares = []
    for stage in PACKED:
        inside = [step for step in steps if step.stage == stage]
        count = workers
        if pack_minutes is not None:
            least = 1 if any(rates.is_measured(step.spec) for step in inside) else min(GUESSED_PACKS, workers)
            count = max(least, math.ceil(sum(step.seconds for step in inside) / (60 * pack_minutes)))
        shares.append(pack([step.spec for step in inside], count, seconds=seconds, places=places))
    return tuple(sum(together, ()) for together in zip_longest(*shares, fillvalue=()))


def _step(spec: Spec, stage: str, status: Status, rates: Rates, written: tuple[Written, ...]) -> Step:
    reasons = {
        State.RUNNING: "another worker builds it now",
        State.FAILED: f"failed before: {status.message}",
        State.LOST: "its worker died",
        State.PREEMPTED: "was preempted",
        State.TIMEOUT: "ran out of time",
        State.CANCELLED: "was cancelled",
        State.BLOCKED: f"waited for something that failed: {status.message}",
    }
    reason = reasons.get(status.state, "not built yet")
    on_gpu = stage in ON_GPU and rates.device.name != CPU
    return Step(spec, key(spec), stage, reason, status.state, rates.seconds(spec), on_gpu, rates.source(spec), written)
