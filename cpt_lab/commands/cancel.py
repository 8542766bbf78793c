"""`cancel STUDY`: end the jobs on SLURM and the workers on this machine of all launches of a study. What is done stays done."""

from __future__ import annotations

import os
import signal

from cpt_lab import launches, roster, slurm
from cpt_lab.commands.words import Words
from cpt_lab.lease import holder
from cpt_lab.roster import Roster
from cpt_lab.store import State, Store


def run(words: Words) -> int:
    """Cancel, and say what was ended and what could not be from here; 1 if something of it still works elsewhere."""
    store, name = words.store, words.one("cancel")
    named = roster.read(store, name)
    elsewhere = _elsewhere(store, named)
    tasks, processes = 0, 0
    ended = []
    for launch in launches.of_study(store, name):
        left = launch.tasks_left() if launch.tasks() else []
        slurm.cancel(left)
        workers = launch.workers_here() if launch.where == "local" else []
        processes += sum([_terminate(pid) for pid in workers])
        tasks += len(left)
        ended.append(launch.id)
    points = _mark(store, named, frozenset(ended))
    print(f"study {name}: {tasks} jobs and {processes} workers told to end, {points} waiting steps cancelled")
    for line in elsewhere:
        print(f"  still at work: {line}")
    print(f"what is done is kept; go on with: python -m cpt_lab resume {name} results={store.root}")
    return 1 if elsewhere else 0


def _terminate(pid: int) -> bool:
    """Ask a worker to hand back what it builds; False if it has ended by itself."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError:
        raise ValueError(f"worker {pid} belongs to another user: ask them to end it") from None
    return True


def _mark(store: Store, named: Roster, ended: frozenset[str]) -> int:
    """Call what these launches had queued CANCELLED, for none of their workers will come to it; how many those were."""
    waiting = 0
    for name in sorted(named.folders):
        status = store.status_in(store.root / name)
        if status.state is State.QUEUED and status.launch in ended:
            store.remark(store.root / name, State.CANCELLED, "cancelled before it began")
            waiting += 1
    return waiting


def _elsewhere(store: Store, named: Roster) -> list[str]:
    """What is built by a process of another machine that belongs to no job: only that machine can end it."""
    found = []
    for name in sorted(named.folders):
        owner = holder(store.root / name)
        if owner is not None and not owner.slurm_job and owner.is_gone() is None:
            found.append(f"process {owner.pid} on {owner.host}, at {name}: run the same command there")
    return found
