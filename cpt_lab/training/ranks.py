"""One training run as several processes: how many, how they are started, and how they end together.

The process that was told to build the run starts torchrun on this node, or on all nodes of its SLURM job through srun. Ranks are asked to
stop by a file, because a signal to torchrun would leave them half a minute; what one of them raises is raised here.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab import failures
from cpt_lab.failures import ProcessLost
from cpt_lab.store import read_json, write_atomically

if TYPE_CHECKING:
    from cpt_lab.execution import Execution

FOLDER = "ranks"  # in the run's scratch folder: job.json, stop, error-RANK.json
PORTS = (20_000, 40_000)  # of the meeting point, by SLURM's job id: two jobs on one node seldom have the same
SET_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Team:
    """So many processes on each of so many nodes."""

    nodes: int
    each: int

    @property
    def size(self) -> int:
        return self.nodes * self.each


def team(how: Execution, environment: Mapping[str, str] = os.environ) -> Team:
    """One process per GPU that this one sees, else one, unless `how` says; on every node of its SLURM job."""
    import torch

    each = how.ranks or (torch.cuda.device_count() if how.on_device() == "cuda" else 1)
    return Team(int(environment.get("SLURM_JOB_NUM_NODES", 1)), each)


def check(batch_sequences: int, size: int) -> None:
    """ValueError if so many ranks cannot share a batch evenly."""
    if batch_sequences % size:
        divisors = [number for number in range(1, batch_sequences + 1) if batch_sequences % number == 0]
        near = max(number for number in divisors if number <= size)
        raise ValueError(
            f"a batch of {batch_sequences} sequences cannot be shared evenly by {size} ranks: use {near}, or another number that divides "
            "it (GPUs x nodes of the site's stage, or execution.ranks)"
        )


def command(job: Path, together: Team, device: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """What starts the ranks of a job file."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={together.each}", "--max-restarts=0"]
    torchrun += ["--signals-to-handle=SIGQUIT"]  # those of SLURM and of Ctrl-C reach the process that started it, which asks the ranks
    program = ["-m", "cpt_lab.training.rank", str(job)]
    if together.nodes == 1:
        return [*torchrun, "--standalone", *program]
    number = int(environment["SLURM_JOB_ID"])
    host, port = environment.get("SLURMD_NODENAME") or socket.gethostname(), PORTS[0] + number % (PORTS[1] - PORTS[0])
    meeting = [f"--nnodes={together.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={host}:{port}", f"--rdzv-id={number}"]
    srun = ["srun", "--overlap", f"--nodes={together.nodes}", f"--ntasks={together.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if cores := environment.get("SLURM_CPUS_PER_TASK"):
        srun.append(f"--cpus-per-task={cores}")  # since SLURM 22.05 srun does not take it from the job
    if device == "cuda":
        srun.append(f"--gpus-per-node={together.each}")
    return [*srun, *torchrun, *meeting, *program]


def run(told: Mapping[str, Any], scratch: Path, together: Team, *, device: str, threads: int) -> None:
    """Start the ranks with this job and wait for them; raise what the first of them raised that failed.

    Whatever ends this wait, a signal's exception for one, asks them to save their state and stop, and waits for that.
    """
    folder = scratch / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomically(folder / "job.json", json.dumps(told))
    place = {**os.environ, "OMP_NUM_THREADS": str(threads), "OLMO_SHARED_FS": "1"}
    process = subprocess.Popen(
        command(folder / "job.json", together, device), env=place, stdin=subprocess.DEVNULL, preexec_fn=_end_with_this_process
    )
    try:
        code = process.wait()
    except BaseException:
        (folder / "stop").touch()
        process.wait()
        raise
    if code:
        raise _first_error(folder, code, together.size)


def on_first(check: Callable[[], None]) -> None:
    """Do it on rank 0 alone; the OSError that it raises there is raised on every rank, so that none waits for one that is gone."""
    from olmo_core.distributed.utils import broadcast_object, get_rank

    found: OSError | None = None
    if get_rank() == 0:
        try:
            check()
        except OSError as error:
            found = error
    verdict = broadcast_object(found)
    if verdict is not None:
        raise verdict


def asked_to_stop(scratch: Path) -> bool:
    """Whether the process that started the ranks wants them to stop."""
    return (scratch / FOLDER / "stop").exists()


def report(folder: Path, rank: int, error: BaseException) -> None:
    """Leave an error for the process that started the ranks; `folder` is where the job file lies."""
    kind = next(name for name, family in KINDS.items() if isinstance(error, family))
    text = str(error) if kind != "other" else f"{type(error).__name__}: {error}"
    number = error.errno if isinstance(error, OSError) else None
    other = isinstance(error, RuntimeError) and not failures.is_out_of_memory(error) and not failures.is_broken_context(error)
    facts = {"kind": kind, "text": text, "errno": number, "rank": rank, "may_be_lost_partner": other}
    write_atomically(folder / f"error-{rank}.json", json.dumps(facts))


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that started it dies."""
    before = os.getppid()
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != before:  # it died meanwhile
        os._exit(1)


# By kind, the more special first.
KINDS: dict[str, type[BaseException]] = {
    "stopped": InterruptedError,
    "memory": MemoryError,
    "system": OSError,
    "value": ValueError,
    "other": BaseException,
}


def _first_error(folder: Path, code: int, size: int) -> BaseException:
    """The oldest error that a rank left; ProcessLost if a rank left none and the others only what its loss may look like from there."""
    files = sorted(folder.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    told = [read_json(file) for file in files]
    own = [error for error in told if not error["may_be_lost_partner"]]
    if not own and len(told) < size:
        seen = f"; rank {told[0]['rank']} then saw {told[0]['text']}" if told else ""
        return ProcessLost(f"a process of the run died without a word (torchrun ended with code {code}{seen}); see the worker's log")
    found = (own or told)[0]
    text = str(found["text"])
    match found["kind"]:
        case "stopped":
            return InterruptedError(text)
        case "memory":
            return MemoryError(text)
        case "system":
            return OSError(found["errno"], text)
        case "value":
            return ValueError(text)
        case _:
            return RuntimeError(f"rank {found['rank']}: {text}")


def _end_with_this_process() -> None:
    """In torchrun before it starts: it dies with us, and leaves our signals to us."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGQUIT})
    ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
