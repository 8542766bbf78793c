"""The trusted side: runs the tests, asks the program in its own process for every value, and says how it went.

Started as a script of its own by the runner. The tests and what they expect are in this process alone; the program can send it values
and nothing else, so it passes by right answers only. Both processes are confined before either runs what it was given.
"""

from __future__ import annotations

import builtins
import json
import os
import select
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import Any, NoReturn

from cpt_lab.evaluation.sandbox.candidate import seed_draws, serve
from cpt_lab.evaluation.sandbox.confinement import Limits, Unconfined, confine, die_with_parent
from cpt_lab.evaluation.sandbox.frames import LENGTH, receive, send
from cpt_lab.evaluation.sandbox.values import packed, unpacked

OUTPUT_BYTES = 16 * 1024**2  # what a program may print, and the longest value it may give
TESTS = "<tests>"
MESSAGE_LENGTH = 300
MOST = 0.5  # of the seconds of CPU: who is killed and has used so much was killed for it; the kernel's two ways to count differ
ENDS_OF_LOOPS = (StopIteration, StopAsyncIteration)  # raised within a test's map() they would end it early, and well


class ProgramError(Exception):
    """The program raised something that is no exception of Python's own."""


def main(memory: str, seconds: str, patience: str) -> None:
    """Test one program after another, each in two processes of its own, as long as there is something on stdin.

    A program is a frame of JSON on stdin. The answers on stdout are frames too: {files_hidden} once both processes are confined, then
    {verdict, message}, or {unavailable} instead of both; last {done}. This process never reads a program, nor its tests.
    """
    die_with_parent()
    limits = Limits(int(memory), int(seconds), float(patience))
    more = select.poll()
    more.register(0, select.POLLIN)
    while more.poll()[0][1] & select.POLLIN:
        tester = os.fork()
        if tester == 0:
            try:
                _test_next(limits)
            finally:
                traceback.print_exc()
                os._exit(1)
        send(1, {"done": os.waitpid(tester, 0)[1]})


def _test_next(limits: Limits) -> NoReturn:
    verdicts = os.dup(1)
    requests, ask = os.pipe()
    replies, reply = os.pipe()
    printed, output = os.pipe()
    child = os.fork()
    if child == 0:  # before the job is read: the program's memory has never held the tests
        serve(requests, reply, output, limits)
    die_with_parent()
    for descriptor in (requests, reply, output):
        os.close(descriptor)
    Trial(child, Pipes(ask, replies, printed, verdicts), limits).run(receive(0))


@dataclass(frozen=True)
class Pipes:
    """The tester's ends: what it asks the program, what that answers and prints, and where the verdict goes."""

    ask: int
    replies: int
    printed: int
    verdicts: int


class Trial:
    """One program being tested. It ends by writing its verdict and leaving at once, wherever the tests are."""

    def __init__(self, child: int, pipes: Pipes, limits: Limits) -> None:
        self._child, self._pipes = child, pipes
        self._asked = 0
        self._bytes_printed = 0
        self._started = False
        self._limits = limits

    def run(self, job: dict[str, Any]) -> NoReturn:
        limits = self._limits
        signal.signal(signal.SIGALRM, lambda *_: self._end("timeout", f"not done after {limits.patience:g} seconds by the clock"))
        signal.setitimer(signal.ITIMER_REAL, limits.patience)
        self._confine(limits)
        tests, names = self._compiled(job)
        names.update({name: self._function(name) for name in job["entries"]})
        try:
            self._request({"source": job["source"]})
            exec(tests, names)
        except MemoryError as error:
            self._end("memory", _described(error, job["tests"]))
        except BaseException as error:
            self._end("failed", _described(error, job["tests"]))
        self._end("passed", "")

    def _confine(self, limits: Limits) -> None:
        """Confine this process, and wait until the program's is."""
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # the tests may print as long as they like
            os.dup2(null, descriptor)
        try:
            confine(limits, child=self._child)
        except Unconfined as error:
            self._end("unavailable", str(error))
        ready = self._reply()
        if "unconfined" in ready:
            self._end("unavailable", str(ready["unconfined"]))
        self._started = True
        send(self._pipes.verdicts, {"files_hidden": ready["files_hidden"]})

    def _compiled(self, job: dict[str, Any]) -> tuple[CodeType, dict[str, Any]]:
        """The tests, and the names that their setup gives them."""
        names: dict[str, Any] = {"__name__": "tests"}
        try:
            seed_draws(job["tests"])
            exec(compile(job["setup"], "<setup>", "exec"), names)
            return compile(job["tests"], TESTS, "exec"), names
        except Exception as error:
            self._end("invalid", _described(error, job["setup"]))

    def _function(self, name: str) -> Callable[..., Any]:
        """The program's function of this name, as the tests see it."""

        def function(*arguments: Any, **named: Any) -> Any:
            try:
                request = {"name": name, "arguments": packed(arguments), "named": packed(named)}
            except TypeError as error:
                self._end("invalid", f"{name} is given what cannot be handed on: {error}")
            return self._request(request)

        function.__name__ = function.__qualname__ = name
        return function

    def _request(self, request: dict[str, Any]) -> Any:
        """The program's answer; raises what it raised, if that is an exception a test could expect."""
        self._asked += 1
        try:
            send(self._pipes.ask, {"id": self._asked, **request})
        except BrokenPipeError:
            self._end(*self._death())
        reply = self._reply()
        try:
            if reply["id"] != self._asked or reply.keys() - {"id"} not in ({"value"}, {"raised"}):
                raise ValueError("an answer that nobody asked for")
            if "value" in reply:
                return unpacked(reply["value"])
            name, message = map(str, reply["raised"])
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            self._end("forged", f"no answer has this form ({type(error).__name__})")
        raise self._raised(name, message)

    def _raised(self, name: str, message: str) -> Exception:
        kind = getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)) or issubclass(kind, ENDS_OF_LOOPS):
            return ProgramError(f"{name}: {message}")
        if not issubclass(kind, Exception):  # tests that catch everything do not catch the end of the program
            self._end("failed", f"the program raised {name}")
        try:
            return kind(message)
        except TypeError:  # the few that want more than a message
            return ProgramError(f"{name}: {message}")

    def _reply(self) -> dict[str, Any]:
        """The next message of the program, while what it prints is read and thrown away."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        if length > OUTPUT_BYTES:
            self._end("output", f"a value of {length:,} bytes")
        try:
            reply = json.loads(self._read(length))
        except (ValueError, RecursionError):
            self._end("forged", "an answer that is no JSON")
        if not isinstance(reply, dict):
            self._end("forged", "an answer that is no JSON object")
        return reply

    def _read(self, count: int) -> bytes:
        data = bytearray()
        waiting = select.poll()
        for descriptor in (self._pipes.replies, self._pipes.printed):
            waiting.register(descriptor, select.POLLIN)
        while len(data) < count:
            for descriptor, _ in waiting.poll():
                part = os.read(descriptor, count - len(data) if descriptor == self._pipes.replies else 65536)
                if descriptor == self._pipes.replies:
                    data += part or self._end(*self._death())
                elif part:
                    self._count(len(part))
                else:
                    waiting.unregister(descriptor)
        return bytes(data)

    def _count(self, printed: int) -> None:
        self._bytes_printed += printed
        if self._bytes_printed > OUTPUT_BYTES:
            self._end("output", f"more than {OUTPUT_BYTES:,} bytes were printed")

    def _death(self) -> tuple[str, str]:
        """Verdict and message for a program that is gone, or has closed its side."""
        os.kill(self._child, signal.SIGKILL)
        _, status, usage = os.wait4(self._child, 0)
        self._child = 0
        code = os.waitstatus_to_exitcode(status)
        used = usage.ru_utime + usage.ru_stime
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and used > MOST * self._limits.seconds):
            return "timeout", f"used {self._limits.seconds} seconds of CPU"
        ended = f"was ended by a signal ({signal.strsignal(-code)})" if code < 0 else f"left with exit code {code}"
        return "crashed", f"the program {ended} before its tests were done"

    def _end(self, verdict: str, message: str) -> NoReturn:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        told = {"verdict": verdict, "message": message[:MESSAGE_LENGTH]} if self._started else {"unavailable": message}
        send(self._pipes.verdicts, told)
        os._exit(0)


def _described(error: BaseException, tests: str) -> str:
    """The error in one line, with the line of the tests where it came up."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == TESTS and frame.lineno]
    where = f" at {tests.splitlines()[lines[-1] - 1].strip()!r}" if lines else ""
    return f"{type(error).__name__}{f': {error}' if str(error) else ''}{where}"
