"""Many programs against their tests, each in processes of its own, several at a time."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Timer
from types import TracebackType
from typing import Any, Literal, Self

from cpt_lab.evaluation.sandbox.frames import receive, send
from cpt_lab.evaluation.sandbox.system_calls import machine

Verdict = Literal["passed", "failed", "timeout", "memory", "output", "crashed", "forged"]
SECONDS, MEMORY = 3.0, 1024**3
PATIENCE = 10.0  # seconds by the clock for one of CPU: a busy machine is no fault of the program
START_SECONDS = 60.0  # until both processes of a program stand, on a very busy machine
ROOT = Path(__file__).parents[3]  # the folder that holds cpt_lab
# No site-packages and no folder of the user's. Not -I: Python would not read the seed of its hashes then.
FLAGS = ("-P", "-s", "-S", "-X", "utf8")
# What programs import most is there before they start.
START = """
import sys
root, *limits = sys.argv[1:]
sys.path.insert(0, root)
from cpt_lab.evaluation.sandbox.tester import main
sys.path.remove(root)
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, typing
main(*limits)
"""


@dataclass(frozen=True)
class Program:
    """A program that is not trusted, and the tests that are.

    `source` is the whole program; `tests` call its functions by the names in `entries`; `setup` is code of the task, not of the model, that
    the tests may use beside Python's own: helpers that stand in the prompt, say. Arguments and results pass by value.
    """

    source: str
    tests: str
    entries: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a program, with a short reason unless it passed."""

    verdict: Verdict
    message: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


class SandboxUnavailable(ValueError):
    """This machine cannot confine a program, so none is run."""


def run_programs(
    programs: Sequence[Program], *, workers: int | None = None, seconds: float = SECONDS, memory: int = MEMORY
) -> list[Outcome]:
    """The outcome of every program, in their order; the same for the same programs however many run at a time.

    `seconds` of CPU (rounded up) and `memory` in bytes hold for each; `workers` run at a time, None: one per core. SandboxUnavailable where
    they cannot be confined; ValueError if a program's setup or tests are no Python that runs.
    """
    if seconds <= 0 or memory <= 0 or (workers is not None and workers < 1):
        raise ValueError(f"{seconds=}, {memory=}, {workers=}: give positive numbers")
    queue: SimpleQueue[int] = SimpleQueue()
    for place in range(len(programs)):
        queue.put(place)
    outcomes: dict[int, Outcome] = {}

    def work() -> None:
        with _Tester(math.ceil(seconds), memory) as tester:
            while (place := _next(queue)) is not None:
                outcomes[place] = tester.outcome(programs[place])

    count = min(workers or len(os.sched_getaffinity(0)), len(programs))
    with ThreadPoolExecutor(max(count, 1)) as pool:
        for worker in [pool.submit(work) for _ in range(count)]:
            worker.result()
    return [outcomes[place] for place in range(len(programs))]


def check_sandbox() -> bool:
    """Whether programs are kept from reading other files too (Landlock); SandboxUnavailable where they cannot be confined."""
    with _Tester(math.ceil(SECONDS), MEMORY) as tester:
        return bool(tester.told(Program("", "", ()))["files_hidden"])


def _next(queue: SimpleQueue[int]) -> int | None:
    try:
        return queue.get_nowait()
    except Empty:
        return None


class _Tester:
    """A process in a session and an empty folder of its own that tests programs, one after another."""

    def __init__(self, seconds: int, memory: int) -> None:
        try:
            machine()
        except ValueError as error:
            raise SandboxUnavailable(str(error)) from None
        self._patience = PATIENCE * seconds
        self._limits = (str(memory), str(seconds), str(self._patience))
        self._folder = tempfile.TemporaryDirectory(prefix="cpt_lab_program_")
        self._process = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
        self._folder.cleanup()

    def outcome(self, program: Program) -> Outcome:
        """How the program did; ValueError if its tests cannot be run."""
        told = self.told(program)
        if told["verdict"] == "invalid":
            names = ", ".join(program.entries) or "a program"
            raise ValueError(f"the tests of {names} cannot be run ({told['message']}): look at the task's data")
        return Outcome(told["verdict"], told["message"])

    def told(self, program: Program) -> dict[str, Any]:
        """All that is told about a program: files_hidden, verdict and message."""
        told: dict[str, Any] = {}
        clock = Timer(START_SECONDS + self._patience, self._kill)
        clock.start()
        try:
            send(self._descriptor("stdin"), asdict(program))
            while "done" not in told:
                told |= receive(self._descriptor("stdout"))
        except (EOFError, BrokenPipeError):  # it was killed, or never stood
            pass
        finally:
            clock.cancel()
        if "files_hidden" not in told:
            raise SandboxUnavailable(f"programs cannot be confined here, so none is run: {told.get('unavailable') or self._end()}")
        if "done" not in told:
            self._end()
            self._process = self._start()
        return {"verdict": "crashed", "message": "the tests used up their memory or time", **told}

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *FLAGS, "-c", START, str(ROOT), *self._limits],
            cwd=self._folder.name,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )

    def _descriptor(self, name: str) -> int:
        return int(getattr(self._process, name).fileno())

    def _kill(self) -> None:
        if self._process.poll() is None:  # its number is its own until it is waited for
            os.killpg(self._process.pid, signal.SIGKILL)

    def _end(self) -> str:
        """End the process and all of its kind; the last line of what it said on stderr."""
        self._kill()
        errors = self._process.communicate()[1].decode(errors="replace").strip()
        return errors.splitlines()[-1] if errors else "the tester ended without a word"


def _environment() -> dict[str, str]:
    """Nothing of ours but where shared objects lie; and sets of strings have the same order every time."""
    libraries = os.environ.get("LD_LIBRARY_PATH")
    return {"PYTHONHASHSEED": "0", **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
