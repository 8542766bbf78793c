"""Python processes that tests start, and patience for what happens in them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# In front of a command: root as everybody else, who may not write where it is forbidden.
UNPRIVILEGED = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
PATIENCE = 300.0  # seconds: only a test that fails takes so long, and a slow machine at full load must not fail


def start(code: str, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A process that runs this code, with pipes; it finds cpt_lab and the helpers of the tests."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    place = {**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}", **(environment or {})}
    return subprocess.Popen(command, env=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def many(code: str, argument_lists: Sequence[Sequence[object]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that run at the same time; those that are still there at the end are killed."""
    started = [start(code, *arguments) for arguments in argument_lists]
    try:
        yield started
    finally:
        for process in started:
            kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL, and the pipes closed."""
    process.kill()
    process.communicate()


def say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    """The next line that the process prints; a failed assertion with its errors if it ends without one."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return line.strip()


def wait_for(condition: Callable[[], bool], *, what: str, seconds: float = PATIENCE) -> None:
    """Return when the condition holds; a failed assertion if that takes too long."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:.0f} s"
        pause.wait(0.02)
