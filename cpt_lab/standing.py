"""How a study stands at one moment: states, what runs, how fast points are finished, how long the rest takes. Read from files alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpt_lab import roster
from cpt_lab.roster import Roster
from cpt_lab.specs import Evaluation
from cpt_lab.store import State, Status, Store, read_json

WINDOW_SECONDS = 3600.0  # the rate is that of the last hour
OPEN = frozenset({State.PLANNED, State.QUEUED, State.RUNNING, State.PREEMPTED})  # what a launch goes on with
BAD = frozenset({State.FAILED, State.BLOCKED, State.LOST, State.TIMEOUT, State.PREEMPTED, State.CANCELLED})


@dataclass(frozen=True)
class Standing:
    """One look at a study; folders are relative to the results."""

    study: str
    points: dict[str, Status]
    folders: dict[str, str]  # point -> folder
    needs: dict[str, Status]  # folder -> status, of what is not done
    probes: tuple[int, int]  # done, all
    running: dict[str, dict[str, Any]] = field(default_factory=dict)  # folder -> {done, total, unit, time} of what is being built
    per_minute: float | None = None
    seconds_left: float | None = None

    @property
    def counts(self) -> Counter[State]:
        return Counter(status.state for status in self.points.values())

    @property
    def bad(self) -> dict[str, Status]:
        """The points that ended, or were put down, without a result."""
        return {name: status for name, status in self.points.items() if status.state in BAD}

    @property
    def works(self) -> bool:
        """Whether somebody builds something of it now."""
        return bool(self.running)


def look(store: Store, named: Roster) -> Standing:
    """The standing of a study now."""
    points = roster.states(store, named)
    folders = {entry.name: entry.folder for entry in named.entries}
    needs = {name: status for name in named.needs if (status := store.status_in(store.root / name)).state is not State.DONE}
    probes = [(store.root / name / "DONE").exists() for name in named.probes]
    known = {folders[name]: status for name, status in points.items()} | needs
    if not all(probes):
        known |= {name: store.status_in(store.root / name) for name, done in zip(named.probes, probes, strict=True) if not done}
    running = {name: read_json(store.root / name / "progress.json") for name, one in known.items() if one.state is State.RUNNING}
    rate = _per_second(list({folders[name]: status for name, status in points.items()}.values()), time.time()) if running else None
    left = len({folders[name] for name, status in points.items() if status.state in OPEN})
    return Standing(
        study=named.study,
        points=points,
        folders=folders,
        needs=needs,
        probes=(sum(probes), len(probes)),
        running=running,
        per_minute=rate and 60 * rate,
        seconds_left=left / rate if rate else None,
    )


def warnings(store: Store, named: Roster, found: Standing) -> Counter[str]:
    """What finished results warn of, of the checkpoints that they combine and of what they scored -> how many say so."""
    points = {folder for name, folder in found.folders.items() if found.points[name].state is State.DONE}
    done = [*points, *(name for name in (*named.needs, *named.probes) if name not in found.needs and name not in points)]
    return Counter(warning for folder in done for warning in dict.fromkeys(_warnings(store.root / folder)))


def _warnings(folder: Path) -> list[str]:
    scored = read_json(folder / "product" / "results.json") if folder.parent.name == Evaluation.FOLDER else {}
    return [*read_json(folder / "provenance.json").get("warnings", ()), *scored.get("warnings", ())]


def _per_second(results: list[Status], now: float) -> float | None:
    """Results finished per second, from the first of the last hour until now; None with fewer than two."""
    ends = [status.since for status in results if status.state is State.DONE and now - WINDOW_SECONDS < status.since <= now]
    return (len(ends) - 1) / (now - min(ends)) if len(ends) > 1 and now > min(ends) else None
