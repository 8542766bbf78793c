"""What steps cost: their FLOPs and bytes, the time of both on a device, what such work took before in this store, or what one says."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from cpt_lab import specs
from cpt_lab.names import unknown
from cpt_lab.specs import Spec, key
from cpt_lab.spectra.blocks import heads_in, roles_in, size_in
from cpt_lab.store import Store, read_json

TRAIN_FLOPS_PER_WEIGHT_AND_TOKEN = 6.0  # forward and backward
READ_FLOPS_PER_WEIGHT_AND_TOKEN = 2.0
ROWS = 64  # answers that are written side by side: every step of them reads the weights once
KEPT_BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2}
LOOKED_AT = 200  # results of each kind whose times are read, the newest
# The folders of the store that are looked at.
TIMED = ("evaluations", "checkpoints", "spectral_parts", "spectral_columns", "materialized", "rankings", "tokens", "protocols")
CPU = "cpu"
Source = Literal["given", "measured", "FLOPs"]  # where the seconds of a step come from
Speed = float | Mapping[str, float]  # tokens per second of training on one device: of any model, or by the models' names


@dataclass(frozen=True)
class Rate:
    """What a device does, for estimates: peak FLOP/s of bf16, the share of it that work of each kind reaches, bytes/s of its memory."""

    name: str = "H100"
    flops: float = 989e12
    bytes_per_second: float = 3.35e12
    train_share: float = 0.4
    read_share: float = 0.15
    spectra_share: float = 1e-3  # eigenvalues in float64: what a peak of bf16 is no measure of


# Peaks as the vendors state them (dense bf16; memory of the SXM versions). The CPU is a guess for one core.
DEVICES: dict[str, Rate] = {
    "H100": Rate(),
    "H200": Rate("H200", 989e12, 4.8e12),
    "A100": Rate("A100", 312e12, 2.0e12, spectra_share=3e-3),
    "L40S": Rate("L40S", 362e12, 0.86e12),
    "A40": Rate("A40", 150e12, 0.7e12),
    "V100": Rate("V100", 125e12, 0.9e12, train_share=0.3, spectra_share=5e-3),
    CPU: Rate(CPU, 5e10, 1e10, train_share=0.5, read_share=0.5, spectra_share=0.5),
}


@dataclass(frozen=True)
class Work:
    """What of a step its time depends on. Steps of one `group` are the same work on other weights."""

    kind: str
    group: str
    flops: float
    bytes: float  # of weights that are read beside, once for every step of ROWS answers


@dataclass(frozen=True)
class Rates:
    """Seconds of steps: of training at the speed that the user gave, which is final; else as long as such work took on this device, else
    by FLOPs as work of its kind did, else by the device's rate."""

    device: Rate = field(default_factory=Rate)
    of_group: Mapping[str, float] = field(default_factory=dict)  # median seconds
    of_kind: Mapping[str, float] = field(default_factory=dict)  # median of seconds / estimated seconds
    given: Speed | None = None

    def seconds(self, spec: Spec) -> float:
        """Of one step on one device."""
        if isinstance(spec, specs.TrainedCheckpoint) and (speed := self.speed(spec)):
            return spec.mixture.tokens / speed
        done = work(spec)
        if done.group in self.of_group:
            return self.of_group[done.group]
        return estimate(done, self.device) * self.of_kind.get(done.kind, 1.0)

    def source(self, spec: Spec) -> Source:
        """Whether the user, earlier results or FLOPs alone say how long it takes."""
        if isinstance(spec, specs.TrainedCheckpoint) and self.speed(spec):
            return "given"
        return "measured" if self.is_measured(spec) else "FLOPs"

    def speed(self, run: specs.TrainedCheckpoint) -> float | None:
        """The tokens per second on one device that the user gave for this run's model, if any."""
        return self.given.get(run.shape.name) if isinstance(self.given, Mapping) else self.given

    def is_measured(self, spec: Spec) -> bool:
        """Whether earlier results have a say in its seconds."""
        done = work(spec)
        return done.group in self.of_group or done.kind in self.of_kind


H100 = Rates()


def known(store: Store, device: str, given: Speed | None = None) -> Rates:
    """The rates of a device as far as this store's results tell, beside what is given for training.

    `device` is a name of DEVICES, or contains one, as NVIDIA's do.
    """
    rate = device_rate(device)
    seconds: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for facts in _newest(store):
        earlier, took = _recorded(facts), _device_seconds(facts)
        if earlier is None or took <= 0 or not _on(facts, rate.name):
            continue
        seconds.setdefault(earlier.group, []).append(took)
        if expected := estimate(earlier, rate):
            shares.setdefault(earlier.kind, []).append(took / expected)
    return Rates(rate, _medians(seconds), _medians(shares), given)


def device_rate(name: str) -> Rate:
    """The rate of a device by its name or NVIDIA's longer one; KeyError with those that are known."""
    for known_name, rate in DEVICES.items():
        if known_name.lower() in name.lower().replace("-", " ").split():
            return rate
    raise KeyError(f"{unknown('device', name, DEVICES)}; set site.gpu to the nearest")


def estimate(done: Work, rate: Rate) -> float:
    """FLOPs / (peak x the share that such work reaches) + bytes / memory's bandwidth, in seconds."""
    share = {"training": rate.train_share, "spectra": rate.spectra_share}.get(done.kind, rate.read_share)
    return done.flops / (rate.flops * share) + done.bytes / rate.bytes_per_second


def work(spec: Spec) -> Work:
    """The work of a step: 6 FLOPs per weight and token of training, 2 per weight and token read or written, `spectral_flops`."""
    match spec:
        case specs.TrainedCheckpoint():
            flops = TRAIN_FLOPS_PER_WEIGHT_AND_TOKEN * spec.shape.parameters * spec.mixture.tokens
            return Work("training", f"training {spec.shape.parameters} {spec.mixture.tokens} {spec.recipe.batch_tokens}", flops, 0.0)
        case specs.Evaluation():
            return _evaluation(spec)
        case specs.SpectralPart():
            group = f"spectra {spec.of} {spec.scope} {spec.checkpoint.shape.parameters} {spec.checkpoint.shape.num_layers}"
            return Work("spectra", group, spectral_flops(spec), 0.0)
        case specs.Fingerprint():
            return Work("spectra", f"fingerprint {key(spec)}", fingerprint_flops(spec), 0.0)
        case specs.Rotations():
            return Work("spectra", f"rotations {key(spec)}", rotations_flops(spec), 0.0)
        case specs.Patched():
            return Work("writing", f"writing {spec.shape.parameters}", 0.0, 4.0 * spec.shape.parameters)  # reads and writes bfloat16
        case _:
            return Work(spec.FOLDER, spec.FOLDER, 0.0, 0.0)  # small things: as long as their like took, or no time


def loaded(spec: Spec) -> int:
    """Bytes of the weights that a worker holds to score a point; 0 for other steps."""
    if not isinstance(spec, specs.Evaluation):
        return 0
    return spec.loaded.shape.parameters * KEPT_BYTES_PER_WEIGHT[spec.protocol.dtype]


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


def rotations_flops(spec: specs.Rotations) -> float:
    """Of the chosen matrices: three Gram matrices, 24 n^3 as of any pair, and 2 n^3 for I_orth."""
    total = 0.0
    for _, role in spec.shown:
        columns, rows = sorted(size_in("attention", spec.checkpoint.shape, role))
        total += 6.0 * rows * columns**2 + 26.0 * float(columns) ** 3
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


def _evaluation(spec: specs.Evaluation) -> Work:
    """Reading and writing tokens costs FLOPs; each token of ROWS answers that are written side by side reads all weights once."""
    weights = spec.loaded.shape.parameters
    tokens = sum(task.tokens for task in spec.protocol.tasks)
    steps = sum(_answered_tokens(task) for task in spec.protocol.tasks) / ROWS
    group = f"evaluation {weights} {key(spec.protocol)}"
    return Work("evaluation", group, READ_FLOPS_PER_WEIGHT_AND_TOKEN * weights * tokens, steps * loaded(spec))


def _answered_tokens(task: specs.Task) -> float:
    """How many tokens the model writes for a task, at most."""
    match task:
        case specs.GenerateTask():
            return float((task.count or 0) * task.max_new_tokens)
        case specs.ChatTask():
            return float((task.count or 0) * task.repeats * task.max_new_tokens)
        case specs.OlmesTask():
            return float((task.count or 0) * task.benchmark.answer_tokens)
        case _:
            return 0.0


def _newest(store: Store) -> Iterator[dict[str, Any]]:
    """The provenance of the newest results of every kind that takes time; with training.json, if they have one."""
    for kind in TIMED:
        try:
            with os.scandir(store.root / kind) as found:
                folders = sorted(found, key=lambda entry: entry.stat().st_mtime, reverse=True)[:LOOKED_AT]
        except FileNotFoundError:
            continue
        for folder in folders:
            facts = read_json(Path(folder.path) / "provenance.json")
            training = read_json(Path(folder.path) / "product" / "training.json") if kind == "checkpoints" else {}
            yield {**facts, "training": training}


def _device_seconds(facts: Mapping[str, Any]) -> float:
    """How long a result takes one device: a training run may have had several."""
    return float(facts.get("seconds", 0.0)) * int(facts["training"].get("ranks", 1))


def _recorded(facts: Mapping[str, Any]) -> Work | None:
    """The work that a result's provenance tells of; None if another version wrote it."""
    told = facts.get("work")
    names = {part.name for part in fields(Work)}
    return Work(**told) if isinstance(told, dict) and set(told) == names else None


def _on(facts: Mapping[str, Any], device: str) -> bool:
    """Whether a result was made on this device, by its provenance."""
    used = CPU if facts.get("execution", {}).get("device") == CPU else facts.get("gpu") or CPU
    return device.lower() in str(used).lower()


def _medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}
