"""A launch on SLURM: its stages as job arrays that go on without us, and what becomes of them."""

from __future__ import annotations

import shlex
import sys
import threading
from collections import Counter
from pathlib import Path

from cpt_lab import slurm
from cpt_lab.launch import Launch
from cpt_lab.plan import PACKED
from cpt_lab.progress import Watch
from cpt_lab.site import Site
from cpt_lab.slurm import Stage
from cpt_lab.specs import key
from cpt_lab.store import read_json

POLL_SECONDS = 1.0
ON_GPU = frozenset({"pretrain", "cpt", "spectra", "probe", "evaluate"})
ONE_TASK_EACH = frozenset({"pretrain", "cpt"})


def stages(told: Launch, site: Site) -> list[Stage]:
    """One stage of jobs per kind of work: evaluations and spectra by their packs, training runs one task each, small things together."""
    made: list[Stage] = []
    for name in told.stages():
        steps = {key(order.spec) for order in told.orders if order.stage == name}
        with_work = sum(not steps.isdisjoint(names) for names in told.packs)
        packs = len(steps) if name in ONE_TASK_EACH else max(1, with_work) if name in PACKED else 1
        gpus = site.gpus_per_node and 1 if name in ON_GPU else 0
        made.append(Stage(name, packs=packs, minutes=site.minutes, gpus=gpus, needs=tuple(stage.name for stage in made)))
    return made


def submit(told: Launch, site: Site) -> None:
    """Submit the launch and say how to follow it. MLflow's database is made first: jobs never migrate one."""
    from cpt_lab import tracking

    try:
        tracking.initialise(told.tracking)
    except tracking.TrackingUnavailable as error:
        print(f"warning: {error}", file=sys.stderr)
    slurm.submit(told.folder, stages(told, site), site)
    for line in job_lines(told.folder):
        print(f"submitted {line}")
    root = shlex.quote(str(told.results))
    print(f"logs in {told.folder / 'logs'}; follow it with: python -m cpt_lab status {told.study} results={root}")
    print(f"when it is done, the same command draws the figures: {told.command}")


def wait(told: Launch) -> None:
    """Show progress until no job of the launch is left in the queue. Ctrl-C leaves the jobs running."""
    with Watch(told.store(), told.steps()) as watch:
        try:
            while _left(told.folder):
                watch.refresh()
                threading.Event().wait(POLL_SECONDS)
            watch.refresh()
        except KeyboardInterrupt:
            print("\nnot waiting any more; the jobs go on")
            raise


def job_lines(folder: Path) -> list[str]:
    """One line per stage of a launch: its job and how many of its tasks are in which state."""
    jobs = read_json(folder / "jobs.json")
    states = slurm.job_states([job for stage in jobs.values() for job in stage["ids"]]) if jobs else {}
    lines = []
    for name, stage in jobs.items():
        counts = Counter(states.get(task, "ended") for task in stage["ids"])
        lines.append(f"{name}: job {stage['job']}, " + ", ".join(f"{count} {state.lower()}" for state, count in counts.items()))
    return lines


def _left(folder: Path) -> bool:
    jobs = read_json(folder / "jobs.json")
    ids = [task for stage in jobs.values() for task in stage["ids"]]
    states = slurm.job_states(ids)
    return any(states.get(task, "COMPLETED") not in slurm.ENDED for task in ids)
