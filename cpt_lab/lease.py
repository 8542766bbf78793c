"""Leases: who builds what. An exclusive file with owner and heartbeat; a dead owner's lease can be taken over, a live one's cannot."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

BEAT_SECONDS = 10.0
MISSED_BEATS = 3  # so many without a sign of life, and the owner's job is asked for


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
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def claim(folder: Path) -> Lease | None:
    """The lease of a folder, or None if a live owner has it."""
    path = folder / "lease.json"
    owner = Owner.me()
    if not _create(path, owner) and not (_bury(path) and _create(path, owner)):
        return None
    return Lease(path, owner)


def holder(folder: Path) -> Owner | None:
    """The live owner of a folder's lease, if there is one."""
    path = folder / "lease.json"
    owner = _read(path)
    return None if owner is None or _is_stale(path, owner) else owner


def _create(path: Path, owner: Owner) -> bool:
    """Create the lease file with its content in one step (a link, which is exclusive on network file systems too)."""
    beside = path.with_name(f".lease-{owner.id}")
    beside.write_text(json.dumps(asdict(owner)))
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        beside.unlink(missing_ok=True)
    return True


def _bury(path: Path) -> bool:
    """Take a dead owner's lease away. If another worker's fresh lease was caught instead, put it back."""
    dead = _read(path)
    if dead is not None and not _is_stale(path, dead):
        return False
    if dead is None and path.exists() and _silent_beats(path) < MISSED_BEATS:
        return False  # cut short by a full disk, or just being written on a slow file system: wait for silence
    grave = path.with_name(f".lease-buried-{uuid.uuid4().hex}")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return True
    caught = _read(grave)
    mistaken = caught is not None and (dead is None or caught.id != dead.id)
    if mistaken:
        with contextlib.suppress(FileExistsError):  # then its owner sees at the end that it was taken over
            os.link(grave, path)
    grave.unlink(missing_ok=True)
    return not mistaken


def _is_stale(path: Path, owner: Owner) -> bool:
    gone = owner.is_gone()
    if gone is not None:
        return gone
    return _silent_beats(path) >= MISSED_BEATS and not (owner.slurm_job and _in_queue(owner.slurm_job))


def _silent_beats(path: Path) -> float:
    """Beats since the last sign of life, by the file system's clock: hosts' clocks differ and jump."""
    probe = path.with_name(f".now-{uuid.uuid4().hex[:8]}")
    try:
        last = path.stat().st_mtime
        probe.touch()
        return (probe.stat().st_mtime - last) / BEAT_SECONDS
    except OSError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _in_queue(job: str) -> bool:
    """Whether SLURM still has the job; True when SLURM cannot be asked, for then nobody may take over."""
    try:
        asked = subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return True
    if asked.returncode:
        return "Invalid job id" not in asked.stderr
    return bool(asked.stdout.strip())


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
