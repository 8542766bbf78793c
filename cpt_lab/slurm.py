"""Submission to SLURM: a launch becomes one job array per stage, whose tasks are workers of the launch's own snapshot of the code.

submitit writes and submits the batch files. All that it pickles is `os.execv` and strings: a task becomes the worker by exec, so
the worker's exit code is the one that SLURM sees, and SLURM's signals reach the worker with nothing in between. Those that come
before it listens, while Python starts and imports, wait for it: a task's first act is to block them, and exec keeps them blocked.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt_lab import partitions
from cpt_lab.site import Site
from cpt_lab.store import read_json, write_atomically

SCRUBBED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "PMI")  # of a job that submits: it would inherit them as options
KEPT = "SLURM_CONF"  # where the cluster is
BLOCK_AND_GO_ON = """\
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""
ANSWER_SECONDS = 120.0  # a busy controller may take long, a dead one for ever
# `sbatch --test-only` says this of a request that no node can ever meet, and of any request while the nodes are down: not a reason.
NOT_NOW = "Requested node configuration is not available"
# The states that SLURM does not leave by itself; every other (PENDING, RUNNING, COMPLETING, SIGNALING, REQUEUED, ...) may change.
ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
)


@dataclass(frozen=True)
class Stage:
    """Work that can run side by side: `packs` tasks of at most `minutes`, after the stages it needs have ended.

    Each asks for `nodes` with `gpus`, and for memory and cores where it is not what the site gives every task.
    """

    name: str
    packs: int
    minutes: int
    gpus: int = 0
    needs: tuple[str, ...] = ()
    nodes: int = 1
    memory_gb: float | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ValueError(f"stage name {self.name!r}: use letters, digits, '_', '-' and '.'")
        if self.packs < 1 or self.minutes < 1 or self.gpus < 0:
            raise ValueError(f"stage {self.name} has {self.packs} packs, {self.minutes} minutes, {self.gpus} GPUs: at least 1, 1 and 0")


def submit(launch: Path, stages: Sequence[Stage], site: Site) -> dict[str, str]:
    """Submit the stages of a launch folder and return {stage: job ids, joined by commas if it took several arrays}.

    A task runs `python -m cpt_lab.worker LAUNCH --stage NAME --pack INDEX` in LAUNCH/code and writes to LAUNCH/logs/NAME.
    After each submission LAUNCH/jobs.json says {stage: {"job": job ids, "tasks": how many, "ids": SLURM's id of each pack, in order}}:
    if this is interrupted, the same call goes on where it stopped. ValueError if SLURM refuses; nothing of the launch is then queued.
    """
    launch = launch.absolute()
    check(stages, site)
    with _scrubbed_environment():
        largest = _max_array_size()
        try:
            for stage in stages:
                _submit_stage(launch, stage, site, largest)
        except ValueError:
            cancel(job for entry in read_json(launch / "jobs.json").values() for job in entry["job"].split(","))
            (launch / "jobs.json").unlink(missing_ok=True)
            raise
    return {stage.name: read_json(launch / "jobs.json")[stage.name]["job"] for stage in stages}


def check(stages: Sequence[Stage], site: Site) -> None:
    """ValueError, before anything is queued, for what SLURM would refuse, and for what it would keep waiting for ever."""
    _check_stages(stages, site)
    with _scrubbed_environment():
        known = partitions.parse(_ask(*partitions.SINFO))
        for stage in stages:
            _check_request(stage, site)
            partitions.check(stage.name, _request(stage, site), known)


def job_states(jobs: Iterable[str]) -> dict[str, str]:
    """{SLURM's id of a task: its state, like PENDING, RUNNING, FAILED (see ENDED)}, for jobs ("12"), tasks ("12_3") or both.

    A task that is missing has ended, and so long ago that SLURM has forgotten it: without accounting that takes MinJobAge, some minutes.
    ValueError if SLURM does not answer.
    """
    asked = {one for job in jobs for one in job.split(",") if one}
    if not asked:
        return {}
    masters = ",".join(sorted({one.split("_")[0] for one in asked}))
    states = _accounted(masters) | _queued(masters)
    found = {task: state for task, state in states.items() if task in asked or task.split("_")[0] in asked}
    whole = {task: states[master] for task in asked if (master := task.split("_")[0]) in states}  # an array that ended before it began
    return whole | found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs or tasks; those that have ended are left as they are. ValueError if SLURM does not answer."""
    asked = sorted({one for job in jobs for one in job.split(",") if one})
    if asked:
        _ask("scancel", "--quiet", *asked)


def batch_parameters(launch: Path, stage: Stage, site: Site, *, after: Sequence[str] = (), parallel: int | None = None) -> dict[str, Any]:
    """submitit's parameters of one array of a stage that starts after the jobs `after`, `parallel` tasks at a time."""
    code = launch / "code"
    request = _request(stage, site)
    path = f"{code}:{code / 'launchers'}"
    return {
        "job_name": f"{launch.name}.{stage.name}",
        **{option.replace("-", "_"): value for option, value in request.items()},
        "signal_delay_s": min(site.signal_seconds, 60 * int(request["time"]) // 2),
        # Not afterok: when one of a hundred tasks has failed, the others' results are worth going on with. The worker marks what misses
        # a need as blocked, and with afterok the whole stage would stay in the queue for ever (DependencyNeverSatisfied).
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "array_parallelism": parallel or stage.packs,
        "setup": [*site.setup, f"export PYTHONPATH={shlex.quote(path)}", f"cd {shlex.quote(str(code))}"],
        # Since SLURM 22.05 srun does not take the cores from the job. The worker is one process, on the first of several nodes: it starts
        # those of a training run on all of them.
        "srun_args": [f"--cpus-per-task={request['cpus-per-task']}", *(["--nodes=1", "--ntasks=1"] if stage.nodes > 1 else [])],
        "wckey": None,
        "additional_parameters": ({} if "no-requeue" in site.extra else {"requeue": True}) | site.extra,
    }


def task_command(launch: Path, stage: Stage, pack: int, python: str) -> list[str]:
    """The command that a task becomes."""
    return [python, "-m", "cpt_lab.worker", str(launch), "--stage", stage.name, "--pack", str(pack)]


def deaf(python: str) -> list[str]:
    """A command that becomes this Python with the arguments put behind it, and holds back the signals that end a worker until it listens.

    -S -I: it must not take longer than a few milliseconds.
    """
    return [python, "-S", "-I", "-c", BLOCK_AND_GO_ON]


def chunks(packs: int, largest: int) -> list[range]:
    """The packs of a stage in arrays of at most `largest` tasks."""
    size = max(1, largest)
    return [range(start, min(start + size, packs)) for start in range(0, packs, size)]


def lanes(arrays: int, largest: int, max_parallel: int | None) -> list[int | None]:
    """How many tasks may run at a time in each lane of a stage: its arrays take turns in the lanes, one after another in each.

    SLURM's limit is of one array, and arrays know nothing of each other: together the lanes run at most `max_parallel` tasks. There are
    no more of them than that takes, so that none has ended when others have half their work before them. None: no limit.
    """
    if max_parallel is None:
        return [None] * arrays
    count = min(arrays, -(-max_parallel // max(1, largest)))
    return [max_parallel // count + (lane < max_parallel % count) for lane in range(count)]


# -------------------------------------------------------------------------------------------------------- submission


def _submit_stage(launch: Path, stage: Stage, site: Site, largest: int) -> None:
    """Submit what jobs.json does not have yet of a stage, array by array."""
    jobs = read_json(launch / "jobs.json")
    arrays = chunks(stage.packs, largest)
    shares = lanes(len(arrays), largest, site.max_parallel)
    needs = [job for need in stage.needs for job in jobs[need]["job"].split(",")]
    for index, packs in enumerate(arrays):
        entry = jobs.get(stage.name, {"job": "", "tasks": 0, "ids": []})
        if entry["tasks"] >= packs.stop:
            continue
        before = entry["job"].split(",")[index - len(shares)] if index >= len(shares) else None
        after = [*needs, *filter(None, [before])]  # the needs too: who is before may be cancelled at any time
        parameters = batch_parameters(launch, stage, site, after=after, parallel=shares[index % len(shares)])
        ids = _submit_array(launch, stage, packs, parameters, site.python)
        job = ",".join(filter(None, [entry["job"], ids[0].split("_")[0]]))
        jobs[stage.name] = {"job": job, "tasks": packs.stop, "ids": [*entry["ids"], *ids]}
        write_atomically(launch / "jobs.json", json.dumps(jobs, indent=1))


def _submit_array(launch: Path, stage: Stage, packs: range, parameters: dict[str, Any], python: str | None) -> list[str]:
    """SLURM's id of each task: `12_0`, `12_1`, ..., or `12` for a single one, which submitit makes a plain job."""
    import submitit
    from submitit.core.utils import FailedJobError

    python = python or sys.executable
    executor = submitit.SlurmExecutor(folder=launch / "logs" / stage.name, python=shlex.join(deaf(python)))
    executor.update_parameters(**parameters)
    commands = [task_command(launch, stage, pack, python) for pack in packs]
    try:
        submitted = executor.map_array(os.execv, [python] * len(commands), commands)
    except FailedJobError as error:
        raise _refusal(stage, str(error)) from None
    return [job.job_id for job in submitted]


def _request(stage: Stage, site: Site) -> dict[str, str | int]:
    """What a task asks of the cluster, as options of sbatch."""
    memory = stage.memory_gb or site.memory_gb
    asked = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": min(stage.minutes, site.minutes),
        "nodes": stage.nodes if stage.nodes > 1 else None,
        "mem": None if memory is None else f"{round(memory * 1024)}M",
        "cpus-per-task": stage.cpus or site.cpus_per_task,
        "gpus-per-node": stage.gpus or None,
    }
    return {option: value for option, value in asked.items() if value is not None}


# ------------------------------------------------------------------------------------------------------------ checks


def _check_stages(stages: Sequence[Stage], site: Site) -> None:
    before: list[str] = []
    for stage in stages:
        unknown = [need for need in stage.needs if need not in before]
        if unknown or stage.name in before:
            wrong = f"needs {unknown[0]!r}, which is not among the stages before it" if unknown else "stands twice"
            raise ValueError(f"stage {stage.name} {wrong}: the order here is {', '.join(one.name for one in stages)}")
        if stage.gpus > site.gpus_per_node:
            raise ValueError(
                f"stage {stage.name} needs {stage.gpus} GPUs and site {site.name} gives a task at most {site.gpus_per_node}: "
                "choose another site or raise site.gpus_per_node"
            )
        before.append(stage.name)


def _check_request(stage: Stage, site: Site) -> None:
    """ValueError if SLURM would refuse: asked of every stage before the first is submitted."""
    options = {**_request(stage, site), **site.extra}
    flags = [f"--{option}" if value is True else f"--{option}={value}" for option, value in options.items()]
    answer = _call("sbatch", "--test-only", *flags, "--wrap=true")
    if answer.returncode != 0 and NOT_NOW not in answer.stderr:
        raise _refusal(stage, answer.stderr)


def _refusal(stage: Stage, said: str) -> ValueError:
    """What sbatch said, as one sentence with a way out."""
    lines = [re.sub(r"^(sbatch: )?(error|fatal|allocation failure): ", "", line.strip()) for line in said.splitlines()]
    reason = "; ".join(line for line in lines if line) or "no reason given"
    if "partition" in reason.lower():
        reason += f" (there are: {', '.join(sorted(set(_call('sinfo', '--all', '--noheader', '--format=%R').stdout.split())))})"
    return ValueError(f"SLURM refuses stage {stage.name}: {reason}; correct the site's file in conf/site, nothing is queued")


def _max_array_size() -> int:
    """How many tasks an array can have: their index must be below MaxArraySize."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
    return int(found.group(1)) if found else 1


# ------------------------------------------------------------------------------------------------------------- SLURM


def _queued(masters: str) -> dict[str, str]:
    """States from squeue; it keeps ended jobs for a while."""
    answer = _call("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={masters}")
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:  # that is its answer when it has forgotten all of them
        raise _no_answer("squeue", answer)
    return _pairs(answer.stdout)


def _accounted(masters: str) -> dict[str, str]:
    """States from the accounting data base; nothing on a cluster without one."""
    try:
        answer = _call("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={masters}")
    except ValueError:
        return {}
    return _pairs(answer.stdout) if answer.returncode == 0 else {}


def _pairs(text: str) -> dict[str, str]:
    """`id|STATE ...` lines as a mapping; ranges of waiting tasks (`12_[3-5]`) are left to squeue, which lists them one by one."""
    rows = (line.strip().split("|") for line in text.splitlines() if "|" in line)
    return {job: state.split()[0] for job, state in rows if state and "[" not in job}  # "CANCELLED by 0" is CANCELLED


def _ask(*command: str) -> str:
    """What a command of SLURM prints; ValueError if it fails."""
    answer = _call(*command)
    if answer.returncode != 0:
        raise _no_answer(command[0], answer)
    return answer.stdout


def _call(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except FileNotFoundError:
        raise ValueError(
            f"this machine has no {command[0]}: log in to a node of a SLURM cluster, start one with launchers/devcluster up, "
            "or stay on this machine with hydra/launcher=local"
        ) from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"{command[0]} has not answered for {ANSWER_SECONDS:.0f} s: try again when SLURM's controller is back") from None


def _no_answer(command: str, answer: subprocess.CompletedProcess[str]) -> ValueError:
    said = "; ".join(line.strip() for line in answer.stderr.splitlines() if line.strip()) or "no reason given"
    return ValueError(f"{command} failed ({said}): check with `scontrol ping` that SLURM runs and that SLURM_CONF is right")


@contextmanager
def _scrubbed_environment() -> Iterator[None]:
    """The environment without what a surrounding job has put there, restored at the end; sbatch reads it, and tasks inherit it."""
    removed = {name: value for name, value in os.environ.items() if name.startswith(SCRUBBED) and name != KEPT}
    for name in removed:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(removed)
