"""What is missing, why, in which order, at what cost, in which packs: pure functions of specs and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from cpt_lab import specs
from cpt_lab.specs import Spec, Unit, key, settled
from cpt_lab.spectra.blocks import heads_in, roles_in, size_in
from cpt_lab.store import State, Status
from cpt_lab.study import Point

STAGES = ("data", "pretrain", "cpt", "spectra", "tables", "probe", "rank", "evaluate")
PACKED = ("spectra", "tables", "probe", "evaluate")  # the stages whose steps are shared out to workers beforehand
STAGE_OF: dict[type[Spec], str] = {
    specs.BuiltinCorpus: "data",
    specs.FilesCorpus: "data",
    specs.HubCorpus: "data",
    specs.BpeTokenizer: "data",
    specs.HubTokenizer: "data",
    specs.Tokens: "data",
    specs.Protocol: "data",
    specs.HubCheckpoint: "data",
    specs.FolderCheckpoint: "data",
    specs.TrainedCheckpoint: "cpt",
    specs.SpectralPart: "spectra",
    specs.SpectralColumns: "tables",
    specs.Spectra: "tables",
    specs.Fingerprint: "spectra",
    specs.Ranking: "rank",
    specs.Correlation: "rank",
    specs.AttentionEntropy: "evaluate",
    specs.LayerSimilarity: "evaluate",
    specs.Patched: "evaluate",
    specs.Evaluation: "evaluate",
}
TRAIN_FLOPS_PER_WEIGHT_AND_TOKEN = 6.0  # forward and backward
READ_FLOPS_PER_WEIGHT_AND_TOKEN = 2.0


@dataclass(frozen=True)
class Rate:
    """What a GPU does, for estimates: peak FLOP/s and the share of it that work of each kind reaches."""

    name: str = "H100"
    flops: float = 989e12
    train_share: float = 0.4
    read_share: float = 0.15
    spectra_share: float = 1e-3  # eigenvalues in float64: what a peak of bf16 is no measure of


@dataclass(frozen=True)
class Step:
    """A spec that has to be built, with the reason."""

    spec: Spec
    key: str
    stage: str
    reason: str
    gpu_hours: float


@dataclass(frozen=True)
class Plan:
    """The work of a launch. A point whose ranking is not known yet counts as one step, though it may turn out to be done."""

    points: tuple[Point, ...]
    done: tuple[str, ...]  # names of the points whose result is there
    steps: tuple[Step, ...]  # to do, needs before what needs them; what several points share stands once
    packs: tuple[tuple[str, ...], ...]  # keys of the probe steps, then of the evaluate steps, by worker

    @property
    def todo(self) -> int:
        return len(self.steps)

    @property
    def gpu_hours(self) -> float:
        return sum(step.gpu_hours for step in self.steps)

    def stages(self) -> dict[str, list[Step]]:
        """The stages that have work, in order."""
        by_stage = {stage: [step for step in self.steps if step.stage == stage] for stage in STAGES}
        return {stage: steps for stage, steps in by_stage.items() if steps}


def make(
    points: Sequence[Point],
    *,
    status: Callable[[Spec], Status],
    orders: Mapping[str, tuple[Unit, ...]],
    workers: int,
    rate: Rate = Rate(),
) -> Plan:
    """The plan for these points, given what `status` knows of every spec and the finished rankings."""
    wanted = {point.name: settled(point.spec, dict(orders)) for point in points}
    states = _States(status)
    done = tuple(name for name, spec in wanted.items() if states.of(spec).state is State.DONE)
    missing = _missing(list(wanted.values()), states)
    before = {key(probe) for probe in probes(missing)}
    steps = tuple(_step(spec, "probe" if key(spec) in before else stage_of(spec), states.of(spec), rate) for spec in missing)
    return Plan(tuple(points), done, steps, _packs(steps, workers))


def pack(points: Sequence[Spec], workers: int) -> tuple[tuple[str, ...], ...]:
    """The keys of these points in at most so many packs: balanced to one point, never empty, and points that share a loaded
    checkpoint and protocol together, in their order, so that a worker loads little and consecutive edits are small."""
    if workers < 1:
        raise ValueError(f"{workers} workers can do nothing: a plan needs at least one worker")
    groups: dict[str, list[str]] = {}
    for point in points:
        groups.setdefault(_shared(point), []).append(key(point))
    in_order = [name for group in groups.values() for name in group]
    count = min(workers, len(in_order))
    bounds = [index * len(in_order) // count for index in range(count + 1)] if count else []
    return tuple(tuple(in_order[start:stop]) for start, stop in pairwise(bounds))


def stage_of(spec: Spec) -> str:
    """The stage that builds a spec; what CPT starts from is trained in a stage before it."""
    return "pretrain" if isinstance(spec, specs.TrainedCheckpoint) and spec.start is None else STAGE_OF[type(spec)]


def probes(wanted: Sequence[Spec]) -> list[Spec]:
    """The evaluations that rankings among these read, each once: they come a stage before the rankings, whoever else wants them."""
    rankings = (spec for spec in wanted if isinstance(spec, specs.Ranking))
    found = (need for ranking in rankings for need in ranking.needs() if isinstance(need, specs.Evaluation))
    return list({key(need): need for need in found}.values())


def gpu_hours(spec: Spec, rate: Rate) -> float:
    """An estimate from FLOP counts: 6 per weight and token of training, 2 per weight and token read or written, `spectral_flops`."""
    if isinstance(spec, specs.TrainedCheckpoint):
        flops = TRAIN_FLOPS_PER_WEIGHT_AND_TOKEN * spec.shape.parameters * spec.mixture.tokens
        return flops / (rate.flops * rate.train_share) / 3600
    if isinstance(spec, specs.Evaluation):
        flops = READ_FLOPS_PER_WEIGHT_AND_TOKEN * spec.loaded.shape.parameters * sum(task.tokens for task in spec.protocol.tasks)
        return flops / (rate.flops * rate.read_share) / 3600
    if isinstance(spec, specs.SpectralPart):
        return spectral_flops(spec) / (rate.flops * rate.spectra_share) / 3600
    if isinstance(spec, specs.Fingerprint):
        return fingerprint_flops(spec) / (rate.flops * rate.spectra_share) / 3600
    return 0.0


def spectral_flops(spec: specs.SpectralPart) -> float:
    """Of a part: per block of m x n, m >= n, 2 m n^2 for a Gram matrix and 4/3 n^3 for its eigenvalues.

    A pair has three Gram matrices, 9 n^3 for eigenvalues and vectors of two of them, and 6 n^3 for the products of the vectors.
    """
    shape, total = spec.checkpoint.shape, 0.0
    for role in roles_in(spec.scope, shape):
        columns, rows = sorted(size_in(spec.scope, shape, role))
        gram, cube = 2.0 * rows * columns**2, float(columns) ** 3
        total += len(heads_in(spec.scope, shape, role)) * (3 * gram + 24 * cube if spec.of == "pair" else gram + 4 / 3 * cube)
    return total


def fingerprint_flops(spec: specs.Fingerprint) -> float:
    """Of all roles: per matrix 4 m n^2 + 9 n^3 for Gram matrix, eigenvectors and the long side; 2 m n^2 + 4 n^3 per pair of matrices."""
    shape, layers, models = spec.checkpoint.shape, len(spec.compared), 2 + len(spec.controls)
    pairs, total = (models - 1) * layers + len(spec.mismatched), 0.0
    for role in roles_in("attention", shape):
        columns, rows = sorted(size_in("attention", shape, role))
        product, cube = 2.0 * rows * columns**2, float(columns) ** 3
        total += models * layers * (2 * product + 9 * cube) + pairs * (product + 4 * cube)
    return total


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


def _packs(steps: Sequence[Step], workers: int) -> tuple[tuple[str, ...], ...]:
    """Each worker's share of the probes, then its share of the points."""
    shares = (pack([step.spec for step in steps if step.stage == stage], workers) for stage in PACKED)
    return tuple(sum(together, ()) for together in zip_longest(*shares, fillvalue=()))


def _step(spec: Spec, stage: str, status: Status, rate: Rate) -> Step:
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
    return Step(spec, key(spec), stage, reason, gpu_hours(spec, rate))


def _shared(point: Spec) -> str:
    """What a worker keeps loaded from one point to the next."""
    if isinstance(point, specs.Evaluation):
        return f"{key(point.loaded)} {key(point.protocol)}"
    return key(point)
