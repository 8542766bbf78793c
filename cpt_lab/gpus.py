"""The GPUs of this machine, as a launch shares them out among its workers; asked of NVIDIA's own tool, without torch."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from itertools import takewhile

RESERVE = 1.25  # memory of a worker that evaluates / bytes of its weights: caches and activations
VISIBLE = "CUDA_VISIBLE_DEVICES"
GIB = 2**30
PART = "MIG-"  # what names of parts of a GPU begin with
NOT_ONE = ("-1", "NoDevFiles")  # people and SLURM hide all GPUs by these names; CUDA looks no further than at the first of them


def names() -> list[str]:
    """As CUDA knows them: those that this process may use, else all by number."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        named = (name.strip() for name in given.split(",") if name.strip())
        return list(takewhile(lambda name: name not in NOT_ONE, named))
    return [str(number) for number in range(len(_memories()))]


def memory_gb() -> float:
    """GiB of the smallest; 0 without any, and where nvidia-smi does not tell: of a part of one (MIG), or one without memory of its own."""
    usable, every = names(), _memories()
    known = [every[int(name)] for name in usable if name.isdecimal() and int(name) < len(every)] or every  # by a long name: any of them
    if None in known or any(name.startswith(PART) for name in usable):
        return 0.0
    return min((memory for memory in known if memory is not None), default=0.0)


def needed(weights: int, each_gb: float) -> int:
    """How many GPUs of so many GiB hold weights of so many bytes, to be scored: ceil(1.25 bytes / GiB each), at least 1."""
    return max(1, math.ceil(RESERVE * weights / (each_gb * GIB)))


def shares(each: int) -> int:
    """How many workers can have so many GPUs for themselves; 0 without any."""
    return len(names()) // each


def of_worker(index: int, each: int, *, workers: int | None = None) -> dict[str, str]:
    """The environment of a worker: so many GPUs, in turn; nothing without any. More workers than `shares` share theirs.

    Fewer workers have more of them each: a training uses all that its worker has.
    """
    known = names()
    each = max(each, len(known) // workers) if workers else each
    start = index % max(1, len(known) // each) * each
    return {VISIBLE: ",".join(known[start : start + each])} if known else {}


def _memories() -> list[float | None]:
    """GiB of each GPU, in their order; None where nvidia-smi has no number, but `[N/A]` or `[Insufficient Permissions]`."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []
    return [float(line) / 1024 if line.isdecimal() else None for line in lines]
