"""`cancel STUDY`: end the workers on this machine and the jobs on SLURM of all launches of a study. What is done stays done."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence, Set

from cpt_lab import launches, roster, slurm
from cpt_lab.commands.words import Words
from cpt_lab.launches import Found
from cpt_lab.lease import holder
from cpt_lab.roster import Roster
from cpt_lab.store import State, Store

Beyond = tuple[str, str]  # a launch, and what of it cannot be ended from here


def run(words: Words) -> int:
    """Cancel, and say what was ended and what could not be from here; 1 if something of it may still work."""
    store, name = words.store, words.one("cancel")
    named, found = roster.read(store, name), launches.of_study(store, name)
    processes, beyond = _end_workers(found)  # first: nobody else has to answer
    tasks, unasked = _end_jobs(found)
    beyond += unasked
    beyond += _building_elsewhere(store, named, known={launch for launch, _ in beyond})
    points = _mark(store, named, {launch.id for launch in found} - {launch for launch, _ in beyond})
    print(f"study {name}: {tasks} jobs and {processes} workers told to end, {points} waiting steps cancelled")
    for _, line in beyond:
        print(f"  may still be at work: {line}")
    print(f"what is done is kept; go on with: python -m cpt_lab resume {name} results={store.root}")
    return 1 if beyond else 0


def _end_workers(found: Sequence[Found]) -> tuple[int, list[Beyond]]:
    """How many workers of this machine were asked to hand back what they build, and which cannot be asked from here."""
    asked, beyond = 0, []
    for launch in found:
        for pid in launch.workers_here() if launch.where == "local" else ():
            try:
                os.kill(pid, signal.SIGTERM)
                asked += 1
            except ProcessLookupError:  # it has ended by itself
                continue
            except PermissionError:
                beyond.append((launch.id, f"worker {pid} of launch {launch.id}, which belongs to another user: ask them to end it"))
        if (owner := launch.elsewhere()) is not None:
            beyond.append((launch.id, f"launch {launch.id}, by process {owner.pid} on {owner.host}: run the same command there"))
    return asked, beyond


def _end_jobs(found: Sequence[Found]) -> tuple[int, list[Beyond]]:
    """How many jobs were cancelled; the launches whose jobs were not, where SLURM does not answer."""
    submitted = {launch.id: tasks for launch in found if (tasks := launch.tasks())}
    every = [task for tasks in submitted.values() for task in tasks]
    try:
        states = slurm.job_states(every)
    except ValueError as error:
        return 0, [(launch, f"jobs of launch {launch}: {error}") for launch in submitted]
    ended, beyond = 0, []
    for launch, tasks in submitted.items():
        left = [task for task in tasks if states.get(task, "COMPLETED") not in slurm.ENDED]
        try:
            slurm.cancel(left)
            ended += len(left)
        except ValueError as error:  # somebody else's, say
            beyond.append((launch, f"jobs of launch {launch}: {error}"))
    return ended, beyond


def _mark(store: Store, named: Roster, ended: Set[str]) -> int:
    """Call what these launches had queued CANCELLED, for none of their workers will come to it; how many those were."""
    waiting = 0
    for name in sorted(named.folders):
        status = store.status_in(store.root / name)
        if status.state is State.QUEUED and status.launch in ended:
            store.remark(store.root / name, State.CANCELLED, "cancelled before it began")
            waiting += 1
    return waiting


def _building_elsewhere(store: Store, named: Roster, known: Set[str]) -> list[Beyond]:
    """What is built by a process of another machine that belongs to no job, nor to a launch that is known to work there."""
    found = []
    for name in sorted(named.folders):
        owner = holder(store.root / name)
        if owner is not None and not owner.slurm_job and owner.is_gone() is None:
            launch = store.status_in(store.root / name).launch
            if launch not in known:
                found.append((launch, f"process {owner.pid} on {owner.host}, at {name}: run the same command there"))
    return found
