"""One MLflow run as a value, and MLflow's rules for what it may hold. Importing this needs no MLflow."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cpt_lab.store import Store

NAME_LENGTH = 250  # MLflow's limits; it cuts longer values with no more than a warning
PARAM_LENGTH = 6000
TAG_LENGTH = 5000


@dataclass(frozen=True)
class Measurement:
    name: str
    value: float
    step: int | None  # None: seconds since the run began, as MLflow has it
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
    metrics: tuple[Measurement, ...] = ()  # in the order of their steps
    texts: dict[str, str] = field(default_factory=dict)  # artifact path -> content
    files: dict[str, Path] = field(default_factory=dict)  # artifact path -> file of the store
    series: Path | None = None  # metrics.jsonl, read only when the run is written


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
