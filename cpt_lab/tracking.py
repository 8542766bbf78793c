"""MLflow as a view of the store: a run per study, below it one per finished point, curve and training run. The only writer of MLflow.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cpt_lab import study as studies
from cpt_lab import tracking_client as mlflow_side
from cpt_lab.lease import claim
from cpt_lab.store import Store, read_json, write_atomically
from cpt_lab.tracking_client import TrackingUnavailable
from cpt_lab.tracking_look import PARENT, Look, look
from cpt_lab.tracking_records import Record, store_id
from cpt_lab.tracking_runs import Runs
from cpt_lab.tracking_settings import Tracking

__all__ = [
    "Reconciled",
    "Synced",
    "Tracking",
    "TrackingUnavailable",
    "initialise",
    "log_figures",
    "reconcile",
    "sync",
    "ui_command",
    "ui_words",
]

LOCK_SECONDS = 300.0  # how long one sync waits for another
POLL_SECONDS = 0.05
RUNS_AT_A_TIME = 50  # are remembered together
FEW = 50  # runs are looked up one by one; for more, all of the study
RUNS = ("point ", "training ", "curve ")  # what identities of runs begin with; figures and the plan are remembered too
KEPT = "kept"  # stamp of a run that is written whenever something new belongs to it
FORMAT = "2"  # raise when runs show something else: all are written again


@dataclass(frozen=True)
class Synced:
    """What a sync did, in runs of points and trainings; `pending` points have nothing to show yet."""

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


def sync(store: Store, name: str, settings: Tracking) -> Synced:
    """Bring MLflow up to the store and count the runs; TrackingUnavailable, saying how to repeat it, if MLflow cannot be reached.

    States alone say what is to be written; with nothing to write neither the manifest nor MLflow is looked at.
    """
    if settings.kind == "off":
        return Synced()
    view = _View(store, name, settings.within(store.root))
    seen = look(store, name)
    if view.is_current(seen):
        return Synced(unchanged=len(seen.stamps), pending=seen.pending)
    with view.writing() as client:
        runs = Runs(store, studies.load(store, name), look(store, name))  # meanwhile another may have written, or finished more
        stale = view.find_stale(client, runs)
        view.ensure(client, runs.parent([]))
        created = sum([view.write_some(client, runs, some) for some in _pieces(stale, RUNS_AT_A_TIME)])
        view.write(client, runs.parent([]))  # last: its status says that the others are there
        view.remember(PARENT, runs.look.stamp)
        view.write_plan(client, runs)
        view.retire_all_but(client, runs.wanted)
    shown = runs.look.stamps
    return Synced(created, len(stale) - created, len(shown) - len(stale), runs.look.pending)


@dataclass(frozen=True)
class Reconciled:
    """What a reconciliation found: runs of the store's results, how many differed, and how many were open though nobody works on them."""

    runs: int = 0
    mended: int = 0
    closed: int = 0


def reconcile(store: Store, name: str, settings: Tracking) -> Reconciled:
    """Compare every run of the study with the store, whatever was remembered of earlier writing, and mend it; errors as `sync`."""
    if settings.kind == "off":
        return Reconciled()
    view = _View(store, name, settings.within(store.root))
    with view.writing() as client:
        runs = Runs(store, studies.load(store, name), look(store, name))
        wanted = runs.everything()
        view.find_all(client)
        closed = len(view.zombies(wanted))
        view.ensure(client, wanted[0])  # first: the others must hang below it
        wrong = view.differing(wanted)
        stamps = {PARENT: runs.look.stamp, **runs.look.stamps}
        for record in wrong:
            view.write(client, record)
        for record in wanted:
            view.remember(record.identity, stamps.get(record.identity, KEPT))
        view.write_plan(client, runs)
        view.retire_all_but(client, runs.wanted)
    return Reconciled(len(wanted), len(wrong), closed)


def log_figures(store: Store, name: str, settings: Tracking, files: Sequence[Path]) -> None:
    """Put the files among the artifacts of the study's run, unless these very contents are there; errors as `sync`."""
    if settings.kind == "off":
        return
    view = _View(store, name, settings.within(store.root))
    new = [path for path in files if not view.knows(f"figure {path.name}", _digest(path.read_bytes()))]
    if not new:
        return
    with view.writing() as client:
        view.find_parent(client)
        run = view.ensure(client, Runs(store, studies.load(store, name), look(store, name)).parent([]))
        mlflow_side.write_files(client, run, new, "figures")
        for path in new:
            view.remember(f"figure {path.name}", _digest(path.read_bytes()))


def ui_command(settings: Tracking) -> str:
    """The command (or the address) that shows the runs; empty if tracking is off."""
    if settings.kind == "off":
        return ""
    if settings.kind == "server":
        return settings.address
    return shlex.join(ui_words(settings))


def ui_words(settings: Tracking) -> list[str]:
    """The words of the command that serves a SQLite file's runs; MLflow need not be on the PATH."""
    return [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", settings.address]


class _View:
    """One study in MLflow: what was written last, and the lock and connection to write more."""

    def __init__(self, store: Store, name: str, settings: Tracking) -> None:
        self._settings = settings
        self._name = name
        self._folder = studies.folder(store, name)
        self._store = store
        self._tags: dict[str, str] = {}
        self._experiment = ""
        self._found: dict[str, Any] = {}
        self._known = self._read()

    def is_current(self, seen: Look) -> bool:
        """Whether all that the look saw was written."""
        shown = {PARENT: seen.stamp, **seen.stamps}
        return shown.items() <= self._known.items()

    def knows(self, name: str, stamp: str) -> bool:
        return self._known.get(name) == stamp

    def remember(self, name: str, stamp: str) -> None:
        self._known[name] = stamp

    @contextmanager
    def writing(self) -> Iterator[Any]:
        """The only writer of this study (and of this database), connected."""
        settings = self._settings
        lock = settings.database.parent if settings.kind == "sqlite" else self._folder
        try:
            with _exclusive(lock):
                self._experiment = _initialise(settings)
                self._known = self._read()
                self._tags = {"cpt.store": store_id(self._store), "cpt.study": self._name}
                with mlflow_side.connected(settings) as client:
                    try:
                        yield client
                    finally:
                        self._write()
        except (TrackingUnavailable, OSError) as error:
            raise TrackingUnavailable(_advice(error, self._name)) from error

    def find(self, client: Any, only: Sequence[str] | None = None) -> None:
        """Look up the runs that exist already: all of the study, or those of some identities."""
        few = only if only is not None and len(only) <= FEW and not any("'" in name for name in only) else None
        self._found |= mlflow_side.find_runs(client, self._experiment, self._tags, few)

    def find_parent(self, client: Any) -> None:
        """Look up the study's own run."""
        self.find(client, [PARENT])
        self._forget_what_is_lost()

    def find_all(self, client: Any) -> None:
        """Look up all runs of the study."""
        self.find(client)
        self._forget_what_is_lost()

    def find_stale(self, client: Any, runs: Runs) -> list[str]:
        """The points and training runs that are not in MLflow as they are, after looking up what is there of them."""
        self.find_parent(client)
        stale = [identity for identity, stamp in runs.look.stamps.items() if not self.knows(identity, stamp)]
        gone = [name for name in self._known if name.startswith(RUNS) and name not in runs.wanted]
        curves = [name for name, points in runs.curves.items() if not set(stale).isdisjoint(points)]
        self.find(client, [*stale, *curves, *gone] if self._known else None)
        return stale

    def _forget_what_is_lost(self) -> None:
        """Where MLflow has lost the study, what was written last says nothing; nor shall it, should this process be killed."""
        if PARENT not in self._found and self._known:
            self._known = {}
            self._write()

    def ensure(self, client: Any, record: Record) -> Any:
        """The record's run, created if there is none; the study's own run must be there before the others."""
        if record.identity not in self._found:
            below = self._below(record)
            self._found[record.identity] = mlflow_side.create_run(client, self._experiment, below, tags=self._tags)
        return self._found[record.identity]

    def write(self, client: Any, record: Record) -> bool:
        """Create the run if there is none, and bring it up to the record; whether it was created."""
        is_new = record.identity not in self._found
        mlflow_side.write_run(client, self.ensure(client, record), self._below(record))
        return is_new

    def _below(self, record: Record) -> Record:
        """The record as a child of the study's run, which is another one when somebody has deleted the first."""
        parent = self._found.get(PARENT)
        if parent is None or record.identity == PARENT:
            return record
        return replace(record, tags={**record.tags, "mlflow.parentRunId": parent.info.run_id})

    def write_some(self, client: Any, runs: Runs, identities: Sequence[str]) -> int:
        """Write these runs, their curves and the study's so far, and remember them: a sync of thousands may be killed; how many are new."""
        records = runs.records(identities)
        created = sum([self.write(client, record) for record in records])
        curves = runs.curve_records(records)
        for record in (*curves, replace(runs.parent(records), status="RUNNING")):
            self.write(client, record)
        for record in records:
            self.remember(record.identity, runs.look.stamps[record.identity])
        for record in curves:
            self.remember(record.identity, KEPT)
        self._write()
        return created

    def write_plan(self, client: Any, runs: Runs) -> None:
        """The plan among the artifacts of the study's run, if it is another than was written."""
        plan = runs.plan()
        if not self.knows("plan", _digest(plan.encode())):
            mlflow_side.write_text(client, self._found[PARENT], plan, "plan.csv")
            self.remember("plan", _digest(plan.encode()))

    def zombies(self, records: Sequence[Record]) -> list[Any]:
        """Runs that MLflow has as RUNNING and the store has not."""
        working = {record.identity for record in records if record.status == "RUNNING"}
        return [run for identity, run in self._found.items() if run.info.status == "RUNNING" and identity not in working]

    def differing(self, records: Sequence[Record]) -> list[Record]:
        """The records whose run is missing, was not written as it should be, or was changed since."""
        return [record for record in records if self._was_changed(record)]

    def _was_changed(self, record: Record) -> bool:
        run = self._found.get(record.identity)
        return run is None or not mlflow_side.shows(run, self._below(record))

    def retire_all_but(self, client: Any, wanted: set[str]) -> None:
        """Mark the runs of this study that the store no longer stands for."""
        for identity in self._found.keys() - wanted:
            mlflow_side.retire_run(client, self._found[identity])
        for identity in [name for name in self._known if name.startswith(RUNS) and name not in wanted]:
            del self._known[identity]

    def _read(self) -> dict[str, str]:
        cache = read_json(self._folder / "mlflow.json")
        written = cache.get("written", {})
        return dict(written) if cache.get("where") == self._where() else {}

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        content = {"where": self._where(), "experiment": self._experiment, "written": self._known}
        write_atomically(self._folder / "mlflow.json", json.dumps(content, indent=1))

    def _where(self) -> list[str]:
        """Which MLflow the memory is about: another server, or a database made anew, knows nothing of what was written."""
        ready = mlflow_side.is_initialised(self._settings)
        return [FORMAT, self._settings.address, self._settings.experiment, ready.get("database", "")]


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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _pieces(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
