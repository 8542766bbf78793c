"""What MLflow must show of a study now, from states alone: a stamp per run, which changes when the run is to be written anew."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cpt_lab import roster, study
from cpt_lab.roster import Entry, Roster
from cpt_lab.store import State, Status, Store

PARENT = "study"  # the identity of the study's own run
RUN_STATUS: dict[State, str] = {  # the states that a run of MLflow can show
    State.DONE: "FINISHED",
    State.FAILED: "FAILED",
    State.TIMEOUT: "FAILED",
    State.LOST: "FAILED",
    State.BLOCKED: "FAILED",
    State.CANCELLED: "KILLED",
}


@dataclass(frozen=True)
class Look:
    """One look at a study: the states of its points by name and of its training runs by folder."""

    roster: Roster
    points: dict[str, Status]
    trainings: dict[str, Status]
    manifest: str  # which manifest this is about

    @cached_property
    def stamps(self) -> dict[str, str]:
        """Identity -> stamp, of every point and training run that has something to show."""
        points = {point_identity(one): (one.folder, self.points[one.name]) for one in self.roster.entries}
        runs = {training_identity(folder): (folder, status) for folder, status in self.trainings.items()}
        return {name: _stamp(folder, status) for name, (folder, status) in {**runs, **points}.items() if status.state in RUN_STATUS}

    @property
    def stamp(self) -> str:
        """Of the study's own run: it shows how many points are in which state."""
        counts = sorted(Counter(status.state.value for status in self.points.values()).items())
        return hashlib.sha256(repr((counts, self.changed, self.manifest)).encode()).hexdigest()[:16]

    @property
    def pending(self) -> int:
        """How many points have nothing to show yet."""
        return sum(status.state not in RUN_STATUS for status in self.points.values())

    @property
    def changed(self) -> float:
        """When a point's state last changed; 0 if none ever did."""
        return max((status.since for status in self.points.values()), default=0.0)


def look(store: Store, name: str) -> Look:
    """The study as it is now; KeyError if there is no such study."""
    named = roster.read(store, name)
    trainings = {folder: store.status_in(store.root / folder) for folder in named.trainings}
    manifest = (study.folder(store, name) / "study.json").stat()
    return Look(named, roster.states(store, named), trainings, f"{manifest.st_mtime_ns} {manifest.st_size}")


def point_identity(entry: Entry) -> str:
    """A point is what was asked for under a name: another spec under the same name is another run."""
    return f"point {entry.name} {entry.asked}"


def training_identity(folder: str) -> str:
    return f"training {Path(folder).name}"


def run_status(states: list[State]) -> str:
    """Of a run that stands for several points: RUNNING while one is at work, SCHEDULED while some wait, else how they ended."""
    if any(state in (State.RUNNING, State.QUEUED) for state in states):
        return "RUNNING"
    if any(state not in RUN_STATUS for state in states):
        return "SCHEDULED"
    return "FINISHED" if all(state is State.DONE for state in states) else "FAILED"


def _stamp(folder: str, status: Status) -> str:
    return hashlib.sha256(f"{folder} {status.state} {status.since} {status.message}".encode()).hexdigest()[:16]
