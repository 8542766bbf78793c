"""A launch on SLURM: its stages as job arrays that go on without us, and what becomes of them."""

from __future__ import annotations

import shlex
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cpt_lab import gpus, rates, slurm, specs
from cpt_lab.launch import Launch
from cpt_lab.plan import ON_GPU, ONE_TASK_EACH, STAGES, Plan, tasks
from cpt_lab.progress import Watch
from cpt_lab.site import Resources, Site
from cpt_lab.slurm import Stage
from cpt_lab.store import read_json

POLL_SECONDS = 1.0
EVALUATE = frozenset({"probe", "evaluate"})


def stages(told: Launch, site: Site, to_evaluate: int = 1) -> list[Stage]:
    """One stage of jobs per kind of work, with as many tasks as `plan.tasks` says."""
    made: list[Stage] = []
    for name in told.stages():
        packs = tasks(name, [order.spec for order in told.orders if order.stage == name], told.packs)
        made.append(stage(name, site, packs=packs, to_evaluate=to_evaluate, needs=tuple(one.name for one in made)))
    return made


def stage(name: str, site: Site, *, packs: int = 1, to_evaluate: int = 1, needs: tuple[str, ...] = ()) -> Stage:
    """A stage of so many tasks with what the site says of it: one GPU for what computes, so many to evaluate, none for small things."""
    asked = {str(one): resources for one, resources in site.stages.items()}.get(name, Resources())
    usual = 0 if name not in ON_GPU or not site.gpus_per_node else to_evaluate if name in EVALUATE else 1
    return Stage(
        name,
        packs=packs,
        minutes=asked.minutes or site.minutes,
        gpus=usual if asked.gpus is None else asked.gpus,
        needs=needs,
        nodes=asked.nodes,
        memory_gb=asked.memory_gb,
        cpus=asked.cpus_per_task,
    )


def gpus_to_evaluate(todo: Plan, site: Site, asked: int | None = None) -> int:
    """How many GPUs of the site a task that scores has: as many as asked for, else as hold the largest model.

    ValueError if no node has as many as the model needs.
    """
    if asked:
        return asked
    largest = max((rates.loaded(step.spec) for step in todo.steps), default=0)
    needed = gpus.needed(largest, site.gpu_memory_gb)
    if site.gpus_per_node and needed > site.gpus_per_node:
        raise ValueError(
            f"a model of {largest / 1e9:.0f} GB needs {needed} GPUs of {site.gpu_memory_gb:g} GB to be scored, and a task of site "
            f"{site.name} has {site.gpus_per_node}: choose a site with larger nodes, or protocol.dtype=bfloat16 if it is float32"
        )
    return needed


def gpus_to_spread(site: Site, to_evaluate: int, asked: int | None = None) -> int:
    """How many GPUs a worker may spread a model over: as many as asked for, else all that a task of the site has to score."""
    of_stages = [resources.gpus or 0 for name, resources in site.stages.items() if name in EVALUATE]
    return asked or max(to_evaluate, *of_stages, 1)


def devices(site: Site, ranks: int | None) -> dict[str, int]:
    """Stage -> how many GPUs or cores train one run together: `ranks` on each of its nodes, or all of their GPUs."""
    asked = [stage(name, site) for name in sorted(ONE_TASK_EACH)]
    return {one.name: one.nodes * (ranks or max(1, one.gpus)) for one in asked}


def check(todo: Plan, site: Site, to_evaluate: int) -> None:
    """ValueError if the cluster would refuse a stage of this plan, or keep it waiting for ever; asked before a launch is written."""
    present = todo.stages()
    _check_ranks(todo, site)
    for name in sorted(EVALUATE.intersection(present)):
        if 0 < (given := stage(name, site, to_evaluate=to_evaluate).gpus) < to_evaluate:
            raise ValueError(
                f"a task of stage {name} has {given} GPUs by site.stages.{name}.gpus, and {to_evaluate} are needed to hold the largest "
                f"model, or asked for by execution.gpus: give site.stages.{name}.gpus as many"
            )
    slurm.check([stage(name, site, to_evaluate=to_evaluate) for name in STAGES if name in present], site)


def _check_ranks(todo: Plan, site: Site) -> None:
    """ValueError if the GPUs of a training's tasks cannot share its batch evenly."""
    from cpt_lab.training import ranks

    for step in todo.steps:
        if isinstance(step.spec, specs.TrainedCheckpoint):
            asked = stage(step.stage, site)
            ranks.check(step.spec.recipe.batch_sequences, asked.nodes * max(1, asked.gpus))


def submit(told: Launch, site: Site, to_evaluate: int) -> None:
    """Submit the launch and say how to follow it. MLflow's database is made first: jobs never migrate one."""
    from cpt_lab import tracking

    try:
        tracking.initialise(told.tracking)
    except tracking.TrackingUnavailable as error:
        print(f"warning: {error}", file=sys.stderr)
    slurm.submit(told.folder, stages(told, site, to_evaluate), site)
    for line in job_lines(told.folder):
        print(f"submitted {line}")
    root = shlex.quote(str(told.results))
    print(f"logs in {told.folder / 'logs'}; follow it with: python -m cpt_lab status {told.study} results={root}")
    print(f"when it is done, the same command draws the figures: {told.command}")


def wait(told: Launch) -> None:
    """Show progress until no job of the launch is left in the queue. Ctrl-C leaves the jobs running."""
    with Watch(told.store(), told.steps()) as watch:
        try:
            for _ in _looks(told.folder):
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


def _looks(folder: Path) -> Iterator[None]:
    """As long as jobs are left. A controller that does not answer is waited for: the jobs go on without it."""
    jobs = read_json(folder / "jobs.json")
    ids = [task for stage in jobs.values() for task in stage["ids"]]
    answers = True
    while True:
        try:
            states = slurm.job_states(ids)
        except ValueError as error:
            if answers:
                print(f"warning: {error}; the jobs go on meanwhile", file=sys.stderr)
            answers = False
        else:
            answers = True
            if all(states.get(task, "COMPLETED") in slurm.ENDED for task in ids):
                return
        yield
