"""A devcluster for the tests of one module."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import PATIENCE

DEVCLUSTER = Path(__file__).parents[1] / "launchers" / "devcluster"


def devcluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `launchers/devcluster ...`."""
    return subprocess.run([sys.executable, str(DEVCLUSTER), *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE)


@contextmanager
def running_devcluster(*options: str) -> Iterator[Path]:
    """A running cluster that this process's SLURM commands talk to; gives its folder."""
    with tempfile.TemporaryDirectory(prefix="devcluster-") as name, pytest.MonkeyPatch.context() as environment:
        started = devcluster("up", name, *options)
        assert started.returncode == 0, started.stderr
        environment.setenv("SLURM_CONF", str(Path(name) / "slurm.conf"))
        try:
            yield Path(name)
        finally:
            stopped = devcluster("down", name)
        assert stopped.returncode == 0, stopped.stderr


def processes_of(folder: Path) -> list[str]:
    """Command lines of the live processes that have a folder in their command line or environment, this one and its parents aside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            name = (process / "comm").read_text().strip()
        except OSError:
            continue
        if str(folder).encode() in known and int(process.name) not in (os.getpid(), os.getppid()):
            found.append(name)
    return found
