"""A worker's keeper on SLURM: the task's first process, which starts the worker and starts another one if it dies.

Without it a point that kills its worker would take the task along, and the points after it would find no worker on a small launch.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection
from types import FrameType


class Keeper:
    """Passes signals on to the worker; what the worker says when it ends becomes the task's exit code."""

    def __init__(self, signals: Collection[signal.Signals]) -> None:
        self._signals = signals
        self._worker = 0
        self._asked = 0

    def keep(self, *, endings: Collection[int], lives: int) -> int | None:
        """None in the worker, which is to go on, with signals blocked until it listens to them. In the keeper, the exit code.

        A worker that ends with a code not among `endings`, or is killed, is replaced, at most `lives` times. Signals are let in only
        while there is a worker to pass them on to: one that comes between two workers is for the second.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        for number in self._signals:
            signal.signal(number, self._pass_on)
        while True:
            sys.stdout.flush()
            self._worker = os.fork()
            if not self._worker:
                return None
            code = self._wait()
            if code in endings or self._asked or lives <= 0:
                return code if code >= 0 else 128 - code
            lives -= 1
            print(f"the worker ended with code {code}; another one goes on", file=sys.stderr, flush=True)

    def _wait(self) -> int:
        """The worker's exit code when it has ended."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        os.waitid(os.P_PID, self._worker, os.WEXITED | os.WNOWAIT)  # it keeps its id: a signal that comes now is passed to nobody else
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        return os.waitstatus_to_exitcode(os.waitpid(self._worker, 0)[1])

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        os.kill(self._worker, number)
