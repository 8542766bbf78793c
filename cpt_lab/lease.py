"""Leases: who builds what. An exclusive file with owner and heartbeat; a dead owner's lease can be taken over, a live one's cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

BEAT_SECONDS = 10.0
MISSED_BEATS = 3  # so many without a sign of life, and the owner's job is asked for
NO_PROCESS = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})  # states of a job whose earlier run has ended


class LeaseLost(RuntimeError):
    """Another worker has taken over what this one was building."""


@dataclass(frozen=True)
class Owner:
    """A process that builds: where it runs and, on SLURM, as which job."""

    id: str
    host: str
    namespace: str
    pid: int
    started: str
    slurm_job: str

    @staticmethod
    def me() -> Owner:
        job = os.environ.get("SLURM_JOB_ID", "")
        return Owner(uuid.uuid4().hex, socket.gethostname(), _pid_namespace(), os.getpid(), _process_start(os.getpid()), job)

    def is_gone(self) -> bool | None:
        """True: surely dead. False: surely alive. None: cannot be known from here, only its heartbeat tells."""
        if self.host == socket.gethostname() and self.namespace == _pid_namespace():
            return _process_start(self.pid) != self.started
        return None


class Lease:
    """A held lease: beats in a thread until it is released."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self.path = path
        self.owner = owner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lease")
        self._thread.start()

    def held(self) -> bool:
        """Whether the file still names this owner."""
        found = _read(self.path)
        return found is not None and found.id == self.owner.id

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.held():
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with suppress(OSError):  # the file system may be away for a while
                if self.held():
                    os.utime(self.path)


def claim(folder: Path) -> Lease | None:
    """The lease of a folder, or None if a live owner has it or another process is about to."""
    path, owner = folder / "lease.json", Owner.me()
    beside = path.with_name(f".lease-{owner.id}")
    try:
        beside.write_text(json.dumps(asdict(owner)))
        taken = _create(path, beside) or _take_over(path, beside)
    finally:
        beside.unlink(missing_ok=True)
    return Lease(path, owner) if taken else None


def holder(folder: Path) -> Owner | None:
    """The live owner of a folder's lease, if there is one."""
    path = folder / "lease.json"
    owner = _read(path)
    return None if owner is None or _is_stale(path, owner) else owner


def _create(path: Path, beside: Path) -> bool:
    """The lease file with its content in one step: a link, which is exclusive on network file systems too."""
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    return True


def _take_over(path: Path, beside: Path) -> bool:
    """Replace a dead owner's lease. Only who made the guard of that very lease may, so of many takers one wins and no live lease is hit."""
    dead = _read(path)
    if not _is_free(path, dead):
        return False
    guard = path.with_name(f".takeover-{dead.id if dead else 'unreadable'}")
    try:
        guard.touch(exist_ok=False)
    except FileExistsError:
        if _silent_beats(guard) >= MISSED_BEATS:  # its maker died in the act: free the way for the next try
            guard.unlink(missing_ok=True)
        return False
    try:
        if _read(path) != dead or not path.exists():  # another taker was faster, or its owner released it after all
            return False
        os.replace(beside, path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _is_free(path: Path, owner: Owner | None) -> bool:
    """Whether a lease that exists may be taken over. One cut short by a full disk names nobody: it is free after some silence."""
    return _is_stale(path, owner) if owner is not None else _silent_beats(path) >= MISSED_BEATS


def _is_stale(path: Path, owner: Owner) -> bool:
    gone = owner.is_gone()
    if gone is not None:
        return gone
    return _silent_beats(path) >= MISSED_BEATS and not _job_runs(owner.slurm_job)


def _silent_beats(path: Path) -> float:
    """Beats since the last sign of life, by the file system's clock: hosts' clocks differ and jump."""
    probe = path.with_name(f".now-{uuid.uuid4().hex[:8]}")
    try:
        last = path.stat().st_mtime
        if 0 <= time.time() - last < BEAT_SECONDS:
            return 0.0  # fresh even by this clock: idle workers ask often, and a probe is three writes on a network file system
        probe.touch()
        return (probe.stat().st_mtime - last) / BEAT_SECONDS
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):  # a read-only file system refuses to remove what is not there
            probe.unlink()


def _job_runs(job: str) -> bool:
    """Whether the processes of a SLURM job may be alive although they give no sign of life."""
    if not job or job == os.environ.get("SLURM_JOB_ID"):
        return False  # the latter: this job was requeued, and an earlier run of it left the lease
    return _in_queue(job, int(time.monotonic() / BEAT_SECONDS))


@lru_cache(maxsize=256)
def _in_queue(job: str, beat: int) -> bool:
    """Whether SLURM has the job, and not as one that waits to be run again; asked once a beat. True if SLURM cannot be asked."""
    del beat
    command = ["squeue", "--noheader", "--format=%T", "--jobs", job]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return True
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(set(asked.stdout.split()) - NO_PROCESS)


def _read(path: Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty if it does not run. Zombies do not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
