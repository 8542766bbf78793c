"""MLflow as a view of the store: a parent run per study, a run per finished point and training run. The only writer of MLflow.

Nothing here is anybody's memory: a sync can be killed, repeated, raced or postponed, and the next one completes the view without
duplicates. Every run carries its identity as a tag from the moment it is created, and that tag, not a file of ours, decides whether it
exists; `mlflow.json` in the study's folder only remembers what was written last, so that a sync with nothing to do needs no MLflow.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_lab import study as studies
from cpt_lab import tracking_client as mlflow_side
from cpt_lab.lease import claim
from cpt_lab.store import Store, read_json, write_atomically
from cpt_lab.study import Study
from cpt_lab.tracking_client import TrackingUnavailable
from cpt_lab.tracking_records import Record, store_id, study_records
from cpt_lab.tracking_settings import Tracking

__all__ = ["Reconciled", "Synced", "Tracking", "TrackingUnavailable", "initialise", "log_figures", "reconcile", "sync", "ui_command"]

LOCK_SECONDS = 300.0  # how long one sync waits for another
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Synced:
    """What a sync did, in runs; `pending` points have nothing to show yet."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    pending: int = 0


def initialise(settings: Tracking) -> str:
    """The id of the experiment, after making database and experiment if they are missing; empty if tracking is off.

    Safe to call from several processes at once; call it before any worker starts. TrackingUnavailable if MLflow cannot be reached.
    """
    if settings.kind == "off":
        return ""
    ready = mlflow_side.is_initialised(settings)
    if ready:
        return ready["experiment"]
    try:
        with _exclusive(settings.database.parent) if settings.kind == "sqlite" else nullcontext():
            return _initialise(settings)
    except (TrackingUnavailable, OSError) as error:
        raise TrackingUnavailable(_advice(error, "STUDY")) from error


def sync(store: Store, study: Study, settings: Tracking) -> Synced:
    """Bring MLflow up to the store and count the runs; TrackingUnavailable, saying how to repeat it, if MLflow cannot be reached."""
    if settings.kind == "off":
        return Synced()
    view = _View(store, study, settings.within(store.root))
    parent, records, pending = study_records(store, study)
    if not view.stale([parent, *records]):
        return Synced(unchanged=len(records), pending=pending)
    with view.writing() as client:
        parent, records, pending = study_records(store, study)  # while this one waited, another may have written or finished more
        view.ensure(client, parent)
        stale = view.stale(records)
        created = sum([view.write(client, record) for record in stale])
        view.write(client, parent)  # last: its status says that the others are there
        view.retire_all_but(client, [parent, *records])
    return Synced(created, len(stale) - created, len(records) - len(stale), pending)


@dataclass(frozen=True)
class Reconciled:
    """What a reconciliation found: runs of the store's results, how many differed, and how many were open though nobody works on them."""

    runs: int = 0
    mended: int = 0
    closed: int = 0


def reconcile(store: Store, study: Study, settings: Tracking) -> Reconciled:
    """Compare every run of the study with the store, whatever was remembered of earlier writing, and mend it; errors as `sync`."""
    if settings.kind == "off":
        return Reconciled()
    view = _View(store, study, settings.within(store.root))
    with view.writing() as client:
        parent, records, _ = study_records(store, study)
        wanted = [parent, *records]
        closed = len(view.zombies(wanted))
        view.ensure(client, parent)
        wrong = view.differing(wanted)
        for record in wrong:
            view.write(client, record)
        view.retire_all_but(client, wanted)
    return Reconciled(len(wanted), len(wrong), closed)


def log_figures(store: Store, study: Study, settings: Tracking, files: Sequence[Path]) -> None:
    """Put the files among the artifacts of the study's run, unless these very contents are there; errors as `sync`."""
    if settings.kind == "off":
        return
    view = _View(store, study, settings.within(store.root))
    new = [path for path in files if not view.knows(f"figure {path.name}", _digest(path))]
    if not new:
        return
    with view.writing() as client:
        run = view.ensure(client, study_records(store, study)[0])
        mlflow_side.write_files(client, run.info.run_id, new, "figures")
        for path in new:
            view.remember(f"figure {path.name}", _digest(path))


def ui_command(settings: Tracking) -> str:
    """The command (or the address) that shows the runs; empty if tracking is off."""
    if settings.kind == "off":
        return ""
    if settings.kind == "server":
        return settings.address
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", settings.address])  # MLflow need not be on the PATH


class _View:
    """One study in MLflow: what was written last, and the lock and connection to write more."""

    def __init__(self, store: Store, study: Study, settings: Tracking) -> None:
        self._settings = settings
        self._study = study
        self._folder = studies.folder(store, study.name)
        self._store = store
        self._tags: dict[str, str] = {}
        self._experiment = ""
        self._found: dict[str, Any] = {}
        self._known = self._read()

    def stale(self, records: Sequence[Record]) -> list[Record]:
        """The records that are not in MLflow as they are."""
        return [record for record in records if not self.knows(record.identity, record.fingerprint)]

    def knows(self, name: str, fingerprint: str) -> bool:
        return self._known.get(name) == fingerprint

    def remember(self, name: str, fingerprint: str) -> None:
        self._known[name] = fingerprint

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """The only writer of this study (and of this database): connected, with the runs that exist already looked up."""
        settings = self._settings
        lock = settings.database.parent if settings.kind == "sqlite" else self._folder
        try:
            with _exclusive(lock):
                self._experiment = _initialise(settings)
                self._known = self._read()
                self._tags = {"cpt.store": store_id(self._store), "cpt.study": self._study.name}
                with mlflow_side.connected(settings) as client:
                    self._found = mlflow_side.find_runs(client, self._experiment, self._tags)
                    if "study" not in self._found:
                        self._known = {}  # MLflow has lost the study: what was written last says nothing
                    try:
                        yield client
                    finally:
                        self._write()
        except (TrackingUnavailable, OSError) as error:
            raise TrackingUnavailable(_advice(error, self._study.name)) from error

    def ensure(self, client: Any, record: Record) -> Any:
        """The record's run, created if there is none; the study's own run must be there before the others."""
        if record.identity not in self._found:
            tags = dict(self._tags)
            if "study" in self._found:
                tags["mlflow.parentRunId"] = self._found["study"].info.run_id
            self._found[record.identity] = mlflow_side.create_run(client, self._experiment, record, tags=tags)
        return self._found[record.identity]

    def write(self, client: Any, record: Record) -> bool:
        """Create the run if there is none, and bring it up to the record; whether it was created."""
        is_new = record.identity not in self._found
        mlflow_side.write_run(client, self.ensure(client, record), record)
        self.remember(record.identity, record.fingerprint)
        return is_new

    def zombies(self, records: Sequence[Record]) -> list[Any]:
        """Runs that MLflow has as RUNNING and the store has not."""
        working = {record.identity for record in records if record.status == "RUNNING"}
        return [run for identity, run in self._found.items() if run.info.status == "RUNNING" and identity not in working]

    def differing(self, records: Sequence[Record]) -> list[Record]:
        """The records whose run is missing, was not written as it should be, or was changed since."""
        return [record for record in records if not self.knows(record.identity, record.fingerprint) or self._was_changed(record)]

    def _was_changed(self, record: Record) -> bool:
        run = self._found.get(record.identity)
        return run is None or not mlflow_side.shows(run, record)

    def retire_all_but(self, client: Any, records: Sequence[Record]) -> None:
        """Mark the runs of this study that the store no longer stands for."""
        for identity in self._found.keys() - {record.identity for record in records}:
            mlflow_side.retire_run(client, self._found[identity])
            self._known.pop(identity, None)

    def _read(self) -> dict[str, str]:
        cache = read_json(self._folder / "mlflow.json")
        written = cache.get("written", {})
        return dict(written) if cache.get("where") == self._where() else {}

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        runs = {identity: run.info.run_id for identity, run in self._found.items()}
        content = {"where": self._where(), "experiment": self._experiment, "written": self._known, "runs": runs}
        write_atomically(self._folder / "mlflow.json", json.dumps(content, indent=1))

    def _where(self) -> list[str]:
        """Which MLflow the memory is about: another server, or a database made anew, knows nothing of what was written."""
        ready = mlflow_side.is_initialised(self._settings)
        return [self._settings.address, self._settings.experiment, ready.get("database", "")]


def _initialise(settings: Tracking) -> str:
    """`initialise` with the lock in hand."""
    ready = mlflow_side.is_initialised(settings)
    if ready:
        return ready["experiment"]
    if settings.kind == "sqlite":
        mlflow_side.create_database(settings)
    with mlflow_side.connected(settings) as client:
        experiment = mlflow_side.ensure_experiment(client, settings)
    if settings.kind == "sqlite":
        mlflow_side.mark_initialised(settings, experiment)
    return experiment


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Wait for the folder's lease, and hold it; a dead holder's is taken over."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    while (lease := claim(folder)) is None:
        if time.monotonic() > deadline:
            raise TrackingUnavailable(f"another process has been writing to {folder} for {LOCK_SECONDS:g} seconds")
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lease.release()


def _advice(error: BaseException, study: str) -> str:
    return f"MLflow cannot be written now ({error}): nothing is lost, `python -m cpt_lab track sync {study}` brings it up to date later"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
