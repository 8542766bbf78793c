"""The launches of a study as their folders tell: which there are, their jobs on SLURM and their workers on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cpt_lab import slurm
from cpt_lab.lease import Owner, holder
from cpt_lab.store import Store, read_json

HEADER_BYTES = 1 << 16  # plan.json of a large study has many megabytes of orders; name and place stand before them
WORKER = "cpt_lab.worker"


@dataclass(frozen=True)
class Found:
    """A launch's folder with the little of its plan that commands must know."""

    folder: Path
    study: str
    where: str

    @property
    def id(self) -> str:
        return self.folder.name

    def tasks(self) -> list[str]:
        """SLURM's ids of all its tasks; none of a local launch."""
        return [task for stage in read_json(self.folder / "jobs.json").values() for task in stage["ids"]]

    def tasks_left(self) -> list[str]:
        """Those that wait or run; ValueError if SLURM cannot be asked."""
        tasks = self.tasks()
        states = slurm.job_states(tasks)
        return [task for task in tasks if states.get(task, "COMPLETED") not in slurm.ENDED]

    def elsewhere(self) -> Owner | None:
        """Who runs its workers on another machine, as far as the heartbeat of a local launch tells."""
        owner = holder(self.folder)
        return owner if owner is not None and owner.is_gone() is None else None

    def workers_here(self) -> list[int]:
        """Process ids of its workers on this machine."""
        return [pid for pid, command in _commands() if WORKER in command and str(self.folder) in command]


def everyone(store: Store) -> list[Found]:
    """All launches, oldest first; folders without a readable plan are none."""
    found = (_found(folder) for folder in sorted((store.root / "launches").glob("*")) if folder.is_dir())
    return [launch for launch in found if launch is not None]


def of_study(store: Store, name: str) -> list[Found]:
    """The study's launches, oldest first."""
    return [launch for launch in everyone(store) if launch.study == name]


def _found(folder: Path) -> Found | None:
    try:
        with (folder / "plan.json").open() as file:
            header = file.read(HEADER_BYTES)
    except OSError:
        return None
    study, where = (re.search(rf'"{field}":"([\w.-]+)"', header) for field in ("study", "where"))
    return Found(folder, study.group(1), where.group(1)) if study and where else None


def _commands() -> list[tuple[int, list[str]]]:
    """(process id, words of its command) of the processes that can be seen."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found.append((int(process.name), words))
    return found
