"""What MLflow shall show of a study: one record per run, read from the store alone. Importing this needs no MLflow."""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpt_lab.specs import Evaluation, Patched, Spec, TrainedCheckpoint, closure, digest, key, rankings_of
from cpt_lab.store import State, Status, Store, read_json
from cpt_lab.study import Point, Study, point_status, resolved, scores

NAME_LENGTH = 250  # MLflow's limits; it cuts longer values with no more than a warning
PARAM_LENGTH = 6000
TAG_LENGTH = 5000
STEPS = 1000  # MLflow's steps are whole numbers: the step of a fraction f is round(1000 f)

RUN_STATUS: dict[State, str] = {
    State.DONE: "FINISHED",
    State.FAILED: "FAILED",
    State.TIMEOUT: "FAILED",
    State.LOST: "FAILED",
    State.BLOCKED: "FAILED",
    State.CANCELLED: "KILLED",
}


@dataclass(frozen=True)
class Measurement:
    name: str
    value: float
    step: int
    time: float  # seconds since the epoch, from the store: logging the same value again is then no second value


@dataclass(frozen=True)
class Record:
    """One MLflow run as the store wants it."""

    identity: str  # unique in its study; the tag by which the run is found again
    name: str
    status: str  # of MLflow: RUNNING SCHEDULED FINISHED FAILED KILLED
    started: float
    ended: float
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Measurement, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)  # artifact path -> content
    files: dict[str, Path] = field(default_factory=dict)  # artifact path -> file of the store
    series: Path | None = None  # metrics.jsonl, read only when the run is written

    @property
    def fingerprint(self) -> str:
        """A digest of all that the run would show."""
        parts = (self.name, self.status, self.ended, self.params, self.tags, self.texts, sorted(self.files), str(self.series))
        values = [(item.name, item.value, item.step) for item in self.metrics]
        return hashlib.sha256(json.dumps([*parts, values], sort_keys=True, default=str).encode()).hexdigest()[:16]


def study_records(store: Store, study: Study) -> tuple[Record, list[Record], int]:
    """(the study's run, its finished points and training runs, how many of its points have nothing to show yet)."""
    specs = resolved(store, study.points)
    states = {point.name: point_status(store, specs[point.name]) for point in study.points}
    shown = [point for point in study.points if states[point.name].state in RUN_STATUS]
    points = [_point(store, study, point, spec=specs[point.name], status=states[point.name]) for point in shown]
    trained = [spec for spec in closure([point.spec for point in study.points]) if isinstance(spec, TrainedCheckpoint)]
    runs = [_training(store, spec) for spec in trained if store.status(spec).state in RUN_STATUS]
    pending = len(study.points) - len(shown)
    return _parent(study, list(states.values())), [*runs, *points], pending


def legal_name(name: str) -> str:
    """The name itself if MLflow takes it; else one it takes, made of its legal characters and four digits of its hash."""
    cleaned = re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)
    path = posixpath.normpath(cleaned).strip("/") if cleaned else "_"
    path = "_" + path[1:] if path.startswith(".") and path != cleaned else path
    path = "_" if path == "." or path.startswith("..") else path
    if path == name and len(name) <= NAME_LENGTH:
        return name
    return f"{path[: NAME_LENGTH - 5]}_{hashlib.sha256(name.encode()).hexdigest()[:4]}"


def series(record: Record) -> Iterator[Measurement]:
    """The numbers of a training run's metrics.jsonl: step = tokens seen; a line cut short by a kill is left out."""
    if record.series is None:
        return
    with record.series.open() as lines:
        for text in lines:
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            step, time = int(line.get("tokens", line.get("step", 0))), float(line.get("time", record.ended))
            for name, value in line.items():
                if name not in ("step", "tokens", "time") and isinstance(value, int | float) and not isinstance(value, bool):
                    yield Measurement(legal_name(name), float(value), step, time)


def store_id(store: Store) -> str:
    """A random name of the store: two people's studies of one name on one server are two studies."""
    path = store.root / "studies" / ".store-id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".store-id.{uuid.uuid4().hex[:8]}")
        beside.write_text(uuid.uuid4().hex)
        try:
            os.link(beside, path)  # exclusive: of several processes one names the store
        except FileExistsError:
            pass
        finally:
            beside.unlink()
    return path.read_text()


# ----------------------------------------------------------------------------------------------------- kinds of records


def _parent(study: Study, states: Sequence[Status]) -> Record:
    counts = {state: sum(status.state is state for status in states) for state in State}
    summary = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
    note = "\n\n".join(text for text in (study.question, f"`{study.command}`" if study.command else "", f"Points: {summary}.") if text)
    note += f"\n\nThe step of a metric is the fraction rewound in parts of {STEPS}."
    times = [status.since for status in states if status.since]
    return Record(
        identity="study",
        name=study.name,
        status=_parent_status(counts),
        started=min(times, default=0.0),
        ended=max(times, default=0.0),
        tags={"cpt.kind": "study", "cpt.question": study.question, "cpt.points": summary, "mlflow.note.content": note},
    )


def _parent_status(counts: dict[State, int]) -> str:
    """RUNNING while a point is, SCHEDULED if points wait and nobody works, else how it ended."""
    if counts[State.RUNNING] or counts[State.QUEUED]:
        return "RUNNING"
    if any(count for state, count in counts.items() if state not in RUN_STATUS):
        return "SCHEDULED"
    bad = sum(count for state, count in counts.items() if state is not State.DONE)
    return "FAILED" if bad else "FINISHED"


def _point(store: Store, study: Study, point: Point, *, spec: Spec, status: Status) -> Record:
    results = scores(store, spec)
    params, overlong = _params({**point.varies, **_curated(point.spec)})
    varied = {f"cpt.{name}": str(value) for name, value in point.varies.items() if value is not None}
    texts = {"config.json": json.dumps(point.config, indent=1, default=str), "spec.json": spec.model_dump_json(indent=1), **overlong}
    return Record(
        identity=f"point {point.name} {digest(point.spec)[:16]}",
        name=point.name,
        status=RUN_STATUS[status.state],
        started=status.since - float(results.get("seconds") or 0.0),
        ended=status.since,
        params=params,
        tags={**_tags(store, spec, "point", status), **varied, "cpt.point": point.name, "cpt.question": study.question},
        metrics=tuple(_measurements(results, _step(point), status.since)),
        texts=texts,
        files=_files(store, point, spec),
    )


def _training(store: Store, spec: TrainedCheckpoint) -> Record:
    status = point_status(store, spec)
    recipe = spec.recipe.model_dump(include={"lr", "schedule", "sequence_length", "batch_sequences", "seed", "precision"})
    params, overlong = _params({"model": spec.shape.name, "mixture": spec.mixture.name, "tokens": spec.mixture.tokens, **recipe})
    product = store.product(spec) if status.state is State.DONE else None
    facts = {} if product is None else read_json(product / "training.json")
    return Record(
        identity=f"training {key(spec)}",
        name=spec.label(),
        status=RUN_STATUS[status.state],
        started=status.since - float(facts.get("seconds") or 0.0),
        ended=status.since,
        params=params,
        tags=_tags(store, spec, "training", status),
        texts={"spec.json": spec.model_dump_json(indent=1), **overlong},
        files=_existing({"training.json": product / "training.json"}) if product else {},
        series=product / "metrics.jsonl" if product and (product / "metrics.jsonl").exists() else None,
    )


# -------------------------------------------------------------------------------------------------------------- helpers


def _curated(spec: Spec) -> dict[str, str]:
    """The few choices that people look for first: model, intervention, protocol, sample sizes."""
    if not isinstance(spec, Evaluation):
        return {"kind": spec.FOLDER}
    changes = spec.checkpoint.interventions if isinstance(spec.checkpoint, Patched) else ()
    items = [task.count for task in spec.protocol.tasks]
    return {
        "model": spec.loaded.shape.name,
        "tuned": spec.loaded.label(),
        "intervention": "+".join(change.kind for change in changes) or "none",
        "protocol": spec.protocol.label(),
        "items": "/".join("all" if count is None else str(count) for count in items),
    }


def _params(values: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """(parameters, artifacts for those that MLflow would cut)."""
    named = {legal_name(name): str(value) for name, value in values.items() if value is not None}
    overlong = {name: value for name, value in named.items() if len(value) > PARAM_LENGTH}
    short = {name: value if name not in overlong else f"see the artifact params/{name}.txt" for name, value in named.items()}
    return short, {f"params/{name}.txt": value for name, value in overlong.items()}


def _tags(store: Store, spec: Spec, kind: str, status: Status) -> dict[str, str]:
    """What says how a result was made. `cpt.message` is there even if empty: a success must erase the failure before it."""
    provenance = store.provenance(spec)
    made = {f"cpt.made.{name}": value for name, value in _leaves(provenance) if len(value) <= TAG_LENGTH}
    commit = next((value for name, value in _leaves(provenance) if name == "git"), None)
    tags = {
        "cpt.kind": kind,
        "cpt.current": "true",
        "cpt.key": key(spec),
        "cpt.state": status.state.value,
        "cpt.message": status.message[:TAG_LENGTH],
        **made,
    }
    return {**tags, "mlflow.source.git.commit": commit} if commit else tags


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float) and value != "":
            yield f"{prefix}{name}", str(value)


def _step(point: Point) -> int:
    fraction = point.varies.get("fraction")
    return round(STEPS * float(fraction)) if fraction is not None else 0


def _measurements(results: dict[str, Any], step: int, time: float) -> Iterator[Measurement]:
    for name, metric in results.get("metrics", {}).items():
        for suffix, value in (("", metric.get("value")), ("__stderr", metric.get("stderr"))):
            if value is not None and not math.isnan(value):
                yield Measurement(legal_name(f"{name}{suffix}"), float(value), step, time)


def _files(store: Store, point: Point, spec: Spec) -> dict[str, Path]:
    """The result, the patch and the rankings that it was made with, as far as they are there."""
    found = {}
    if store.is_done(spec):
        found = {name: store.product(spec) / name for name in ("results.json", "patch.json")}
    for ranking in rankings_of(point.spec):
        if store.is_done(ranking):
            found |= {name: store.product(ranking) / name for name in ("ranking.json", "scores.parquet")}
    return _existing(found)


def _existing(files: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if path.is_file()}
