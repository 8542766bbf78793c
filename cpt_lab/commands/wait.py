"""`status STUDY --watch` and `wait STUDY`: look again until nobody works on the study any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cpt_lab import launches, report, roster, standing
from cpt_lab.commands.words import Words
from cpt_lab.standing import Standing
from cpt_lab.store import State, Store

LOOK_SECONDS = 2.0
LINE_SECONDS = 60.0  # without a terminal, a line at least so often; more often when a state changes
JOBS_SECONDS = 15.0  # SLURM's controller is asked no more often
MOST_FAILURES = 3  # of each reason, on a screen that is drawn again and again
FLAGS = ("--watch",)


def watch(store: Store, name: str) -> int:
    """Show the study until all has ended or Ctrl-C; always 0."""
    _until_ended(store, name)
    return 0


def run(words: Words) -> int:
    """Wait until nobody works on the study; 0 if all its points are done, else 1."""
    found = _until_ended(words.store, words.one("wait"))
    return 0 if set(found.counts) == {State.DONE} else 1


def _until_ended(store: Store, name: str) -> Standing:
    console, jobs = Console(), _Jobs(store, name)
    show = _speaker(console)
    with Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else _Nothing() as live:
        while True:
            found = standing.look(store, roster.read(store, name))
            if not (found.works or jobs.left(found)):
                break
            if isinstance(live, Live):
                lines = [*report.status_lines(found, MOST_FAILURES), *(f"  {line}" for line in jobs.lines)]
                live.update(Text("\n".join(lines[: max(3, console.height - 2)])), refresh=True)
            else:
                show(found)
            threading.Event().wait(LOOK_SECONDS)
    for line in report.status_lines(found):
        print(line, flush=True)
    return found


class _Jobs:
    """Whether jobs or workers of the study are left: what SLURM and this machine say, asked from time to time."""

    def __init__(self, store: Store, name: str) -> None:
        self._launches = launches.of_study(store, name)
        self._store, self._name = store, name
        self._asked = 0.0
        self._left = True
        self.lines: list[str] = []

    def left(self, found: Standing) -> bool:
        """Whether somebody may still come to work on it. Where SLURM cannot be asked, what the files say decides."""
        if set(found.counts) == {State.DONE}:
            return False
        if not self._asked or time.monotonic() - self._asked >= JOBS_SECONDS:
            self._asked = time.monotonic()
            self.lines = report.job_lines(self._store, self._name)
            self._left = self._ask(found)
        return self._left

    def _ask(self, found: Standing) -> bool:
        if any(launch.workers_here() or launch.elsewhere() for launch in self._launches if launch.where == "local"):
            return True
        try:
            return any(launch.tasks_left() for launch in self._launches if launch.where == "slurm")
        except ValueError:  # squeue is not here, or the controller is away
            return bool(found.counts[State.QUEUED])


class _Nothing:
    """No terminal: no live display."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _speaker(console: Console) -> Callable[[Standing], None]:
    """Prints the first two lines of a standing when they have changed or much time has passed."""
    last: dict[str, tuple[str, float]] = {}

    def speak(found: Standing) -> None:
        summary, *rest = report.status_lines(found)
        said, when = last.get("line", ("", 0.0))
        if summary == said and time.monotonic() - when < LINE_SECONDS:
            return
        last["line"] = (summary, time.monotonic())
        pace = rest[0].strip() if found.per_minute is not None and rest else ""
        console.print(f"{summary}{f' | {pace}' if pace else ''}", highlight=False, soft_wrap=True)

    return speak
