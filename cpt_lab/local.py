"""A launch on this machine: workers as processes, watched until all is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from cpt_lab import gpus, rates
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.launch import Launch, environment
from cpt_lab.lease import claim
from cpt_lab.plan import ONE_TASK_EACH, Plan, stage_of
from cpt_lab.progress import Watch
from cpt_lab.specs import Spec, closure
from cpt_lab.store import Store
from cpt_lab.study import Study
from cpt_lab.worker import ENDINGS, FAILED, SIGNALS

POLL_SECONDS = 0.5
GRACE_SECONDS = 30.0  # for workers to hand back what they build
SYNC_SECONDS = 60.0
MOST_DEFAULT_WORKERS = 4
INTERRUPTED = 130
LAST_LINES = 15  # of a log, when a worker ends badly


def default_workers(each: int = 1) -> int:
    """One per GPU, or per so many; without GPUs one per core, but no more than 4: each holds its own model."""
    return gpus.shares(each) or min(MOST_DEFAULT_WORKERS, cores())


def gpus_to_evaluate(todo: Plan, asked: int | None = None) -> int:
    """How many of this machine's GPUs a worker may spread a model over that it scores: as many as asked for, else as hold the largest.

    ValueError if there are not as many.
    """
    largest = max((rates.loaded(step.spec) for step in todo.steps), default=0)
    count, each_gb = len(gpus.names()), gpus.memory_gb()
    if asked and count:
        if asked > count:
            raise ValueError(f"execution.gpus is {asked}, and this machine gives {count}: ask for fewer, or leave it out")
        return asked
    if count and not each_gb and largest:
        unknown = "nvidia-smi does not say how much memory these GPUs have"
        print(f"warning: {unknown}: a model is put on one; if that is too small, set execution.gpus", file=sys.stderr)
    needed = gpus.needed(largest, each_gb) if count and each_gb else 1
    if needed > max(1, count):
        raise ValueError(
            f"a model of {largest / 1e9:.0f} GB needs {needed} GPUs of {each_gb:.0f} GB to be scored, and this machine gives {count}: "
            "use a larger one, or execution.device=cpu, or protocol.dtype=bfloat16 if it is float32"
        )
    return needed


def devices(how: Execution, workers: int) -> dict[str, int]:
    """Stage -> how many GPUs or cores train one run together: `ranks`, or all GPUs that one of so many workers has."""
    alone = gpus.of_worker(0, how.gpus, workers=workers).get(gpus.VISIBLE, "")
    seen = 1 if how.device == "cpu" else alone.count(",") + 1
    return dict.fromkeys(ONE_TASK_EACH, how.ranks or seen)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(told: Launch, workers: int) -> None:
    """Run the launch's workers to their end with progress, and hold its folder's lease meanwhile: other machines see that it is at work.

    On Ctrl-C, a polite kill or a closed terminal they hand back what they build, and SystemExit says how to go on.
    """
    crew = Crew(told, workers)
    with _Asked() as asked, _held(told.folder), Watch(told.store(), told.steps()) as watch:
        try:
            crew.start()
            while crew.working() and not asked.to_stop:
                watch.refresh()
                threading.Event().wait(POLL_SECONDS)
            stopped = asked.to_stop and crew.working()
            watch.refresh()
        finally:
            crew.stop()
        if not stopped:
            crew.explain()
    if stopped:
        print(f"\nstopped; what is done is kept, and the same command goes on from here:\n  {told.command}")
        raise SystemExit(INTERRUPTED)


class _Asked:
    """Whether this process was told to end by Ctrl-C, TERM or HUP: workers live in sessions of their own and would go on alone.

    A note that somebody looks at, and no exception, which could come between the start of a worker and the moment when we know of it.
    """

    def __init__(self) -> None:
        self.to_stop = False

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # as HUP is under nohup
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _: int, __: FrameType | None) -> None:
        self.to_stop = True


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder's lease, as long as its disk can be written."""
    lease = None
    with suppress(OSError):
        lease = claim(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            if lease is not None:
                lease.release()


def build_here(store: Store, wanted: Sequence[Spec], how: Execution) -> None:
    """Build small things, and what they need, in this process with progress; what goes wrong is raised here."""
    missing = [spec for spec in closure(list(wanted)) if not store.is_done(spec)]
    if not missing:
        return
    workshop = Workshop(store, how)
    errors: list[BaseException] = []

    def build() -> None:
        try:
            for spec in missing:
                ensure(workshop, spec)
        except BaseException as error:  # of the thread: the caller raises it
            errors.append(error)

    thread = threading.Thread(target=build, daemon=True, name="builds")
    with Watch(store, [(stage_of(spec), spec) for spec in missing]) as watch:
        thread.start()
        while thread.is_alive():
            watch.refresh()
            thread.join(POLL_SECONDS)
        watch.refresh()
    if errors:
        raise errors[0]


class Crew:
    """The worker processes of a launch; one that dies is replaced, as often as its steps may cost a worker their life."""

    def __init__(self, told: Launch, workers: int) -> None:
        self._told = told
        self._workers = workers
        self._deaths_left = told.max_attempts * len(told.orders)
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all workers. Whatever ends this, `stop` ends those that were started."""
        for index in range(self._workers):
            self._processes[index] = self._start(index)

    def working(self) -> bool:
        """Whether any worker runs."""
        for index, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            if process.returncode not in ENDINGS and self._deaths_left > 0:
                self._deaths_left -= 1
                how = f"was killed by signal {-code}" if (code := process.returncode) < 0 else f"ended with code {code}"
                print(f"worker {index} {how}; another one goes on", file=sys.stderr)
                self._processes[index] = self._start(index)
        return any(process.poll() is None for process in self._processes.values())

    def explain(self) -> None:
        """Say on stderr why workers ended that were not meant to."""
        for index, process in self._processes.items():
            if process.returncode not in (0, FAILED):
                lines = self._log(index).read_text(errors="replace").splitlines()[-LAST_LINES:]
                print(f"worker {index} ended with code {process.returncode}; the end of {self._log(index)}:", file=sys.stderr)
                print("\n".join(f"  {line}" for line in lines), file=sys.stderr)

    def stop(self) -> None:
        """Ask the workers to hand back, wait, and end those that do not."""
        left = [process for process in self._processes.values() if process.poll() is None]
        if left:
            print(f"ending {len(left)} workers, which hand back what they build: {GRACE_SECONDS:.0f} s at most", file=sys.stderr)
        for process in left:
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_SECONDS
        for process in left:
            try:
                process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        folder = self._told.folder
        command = [sys.executable, "-m", "cpt_lab.worker", str(folder), "--pack", str(index)]
        place = {**environment(self._told), **gpus.of_worker(index, self._told.how.gpus, workers=self._workers)}
        with self._log(index).open("ab") as log, _held_back():
            # a session of its own: Ctrl-C reaches this process alone, which then asks the workers to stop
            return subprocess.Popen(command, cwd=folder / "code", env=place, stdout=log, stderr=log, start_new_session=True)

    def _log(self, index: int) -> Path:
        return self._told.folder / "logs" / f"worker-{index}.txt"


@contextmanager
def _held_back() -> Iterator[None]:
    """Processes that are started here get the signals that end a worker only when they listen to them: the mask is inherited."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def tracking_in_background(store: Store, asked: Study) -> Iterator[None]:
    """Create MLflow's database while the workers work, and mirror what is done from time to time. Problems wait for the end."""
    ended = threading.Event()
    thread = threading.Thread(target=_mirror, args=(store, asked, ended), daemon=True, name="tracking")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def synchronise(store: Store, asked: Study, files: Sequence[Path]) -> str:
    """Bring MLflow up to date and return the command that opens its UI; a warning, and nothing, if it cannot be reached."""
    from cpt_lab import tracking

    try:
        tracking.initialise(asked.tracking)
        tracking.sync(store, asked.name, asked.tracking)
        tracking.log_figures(store, asked.name, asked.tracking, files)
    except tracking.TrackingUnavailable as error:
        print(f"warning: {error}", file=sys.stderr)
        return ""
    return tracking.ui_command(asked.tracking)


def _mirror(store: Store, asked: Study, ended: threading.Event) -> None:
    from cpt_lab import tracking

    with suppress(tracking.TrackingUnavailable):
        tracking.initialise(asked.tracking)
    while not ended.wait(SYNC_SECONDS):
        with suppress(tracking.TrackingUnavailable):  # it may be back the next time; `synchronise` says so at the end
            tracking.sync(store, asked.name, asked.tracking)
