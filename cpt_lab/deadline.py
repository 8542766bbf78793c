"""A limit on the time of one step. A step that hangs takes its process with it: nothing else ends code that does not return."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

GRACE_SECONDS = 60.0  # for `give_up`; after it the kernel kills, even if the step never lets another thread run


@contextmanager
def deadline(seconds: float | None, give_up: Callable[[], None], *, code: int) -> Iterator[None]:
    """If the block takes longer, `give_up` is called and the process ends with `code`; one too stuck for that is killed by SIGALRM."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, _end, (give_up, code))
    timer.daemon = True
    timer.start()
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
    try:
        yield
    finally:
        timer.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)


def leave(code: int) -> NoReturn:
    """End this process at once: no clean-up of libraries, which may hang or crash with what broke."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _end(give_up: Callable[[], None], code: int) -> None:
    try:
        give_up()
    finally:
        leave(code)
