"""A worker: told a launch, it keeps claiming what is ready, builds it, obeys signals.

`python -m cpt_lab.worker LAUNCH_FOLDER [--stage STAGE] [--pack INDEX]`; nobody types this: the launchers do.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cpt_lab import build, failures, launch, study
from cpt_lab.build import NotWritable, Stopped, Unfit, Workshop
from cpt_lab.deadline import deadline, leave
from cpt_lab.keeper import Keeper
from cpt_lab.launch import Launch
from cpt_lab.lease import Lease
from cpt_lab.specs import Spec, TrainedCheckpoint, key, settled
from cpt_lab.store import State, Status

SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 1.6  # seconds between two looks at the store while nothing is ready
EVERY_STAGE = "all"
ANSWER_SECONDS = 5.0  # of SLURM's controller, when there are 30 left to hand back what is built
REQUEUE_SECONDS = 5.0  # between two tries to be queued again
REQUEUE_ANSWER_SECONDS = 60.0  # of scontrol, which itself waits for SLURM's MessageTimeout
# scontrol's words for a job that may not be queued again, is forgotten, is no batch job, or is somebody else's
NEVER = ("presently disabled", "Invalid job id", "Only batch jobs", "Access/permission denied")
FAILED, CRASHED, NO_ROOM = 1, 70, 74  # exit codes: some steps; the worker itself (EX_SOFTWARE); the store's disk (EX_IOERR)
PREEMPTED, STOPPED = 75, 130  # the step in hand was handed back: try again (EX_TEMPFAIL), told to stop
UNFIT = 76  # this process must not go on, another one can
ENDINGS = frozenset({0, FAILED, CRASHED, NO_ROOM, PREEMPTED, STOPPED})  # after any other end another worker goes on
SIGNALS = {signal.SIGTERM: State.CANCELLED, signal.SIGINT: State.CANCELLED, signal.SIGUSR2: State.PREEMPTED}


@dataclass(frozen=True)
class Verdict:
    """What can be done with a step now."""

    ready: bool = False
    finished: bool = False
    blocked_by: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Run one worker to its end; the exit code says whether all its steps are done."""
    parser = argparse.ArgumentParser(prog="python -m cpt_lab.worker")
    parser.add_argument("launch", type=Path)
    parser.add_argument("--stage", default=EVERY_STAGE)
    parser.add_argument("--pack", type=int, default=0)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    told, signals = None, Signals()
    try:
        told = launch.load(chosen.launch)
        if told.where == "slurm":
            kept = Keeper(SIGNALS).keep(endings=ENDINGS, lives=told.max_attempts * len(told.orders))
            if kept is not None:
                return kept
        signals.listen()
        code = Worker(told, chosen.stage, chosen.pack, check=signals.check).run()
        signals.ignore()
    except Unfit as error:
        print(f"this process can use its GPU no more ({error}); another one goes on", flush=True)
        leave(UNFIT)
    except NotWritable as error:
        code = _no_room(error)
    except Stopped as stopped:
        print(f"stopped by a signal ({stopped.state}); the same command goes on from here", flush=True)
        code = PREEMPTED if stopped.state is State.PREEMPTED else STOPPED
    except Exception as error:  # the worker's edge: whoever started it reads the log
        traceback.print_exc()
        code = _no_room(error) if failures.is_not_writable(error) else CRASHED
    if told is not None and told.where == "slurm" and code not in (NO_ROOM, PREEMPTED):  # who is preempted has no time, and comes back
        _mirror(told)
    if code == PREEMPTED:
        _requeue()  # last, for it ends this process
    return code


class Signals:
    """What a signal asked of this process. It raises Stopped, and is remembered: libraries swallow what is raised at a bad moment."""

    def __init__(self) -> None:
        self._asked: State | None = None

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def ignore(self) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Stopped, if a signal came."""
        if self._asked is not None:
            raise Stopped(self._asked)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.ignore()  # what follows a first signal must not interrupt the handing back
        self._asked = State.PREEMPTED if number == signal.SIGTERM and _is_preempted() else SIGNALS[signal.Signals(number)]
        self.check()


class Worker:
    """Builds the steps of a launch, those of its own pack first, then what others have not begun."""

    def __init__(self, told: Launch, stage: str, pack: int, *, check: Callable[[], None] = lambda: None) -> None:
        self.launch = told
        self.store = told.store()
        self.workshop = Workshop(self.store, told.how, told.code, wanted=[order.spec for order in told.orders])
        self.stage = stage
        self.steps = {key(order.spec): order.spec for order in told.orders if stage in (EVERY_STAGE, order.stage)}
        self.asked = dict(self.steps)  # every step, as far as it is settled
        self.pack = pack
        self.check = check  # raises Stopped when it is time to go

    def run(self) -> int:
        """Build until nothing is left that could be: exit code 0 if all steps are done."""
        _limit_threads(self.launch.how.threads)
        pause = SHORTEST_PAUSE
        while self.steps:
            self.check()
            if self._build_one():
                pause = SHORTEST_PAUSE
            elif self.steps:
                threading.Event().wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)  # a long training beside it needs the core more than a look at the store
        return 0 if all(self.store.is_done(spec) for spec in self.asked.values()) else FAILED

    def _build_one(self) -> bool:
        """Take the first step that is ready; drop what is finished on the way. False if nothing could be taken now."""
        for name in self._in_order():
            spec = self._settle(name)
            verdict = self._verdict(spec)
            if verdict.blocked_by:
                self._mark_blocked(spec, verdict.blocked_by)
            if verdict.finished or verdict.blocked_by:
                del self.steps[name]
                continue
            if verdict.ready and self._build(spec):
                return True
        return False

    def _settle(self, name: str) -> Spec:
        """The step, with explicit units as soon as its ranking is known."""
        spec = self.steps[name]
        if study.rankings_pending(spec):
            spec = settled(spec, study.orders(self.store, [spec]))
            self.steps[name] = self.asked[name] = spec
        return spec

    def _in_order(self) -> list[str]:
        """Shared steps first, then the own pack from its start, then the others' from their end, where their owners come last."""
        packed = {name for names in self.launch.packs for name in names}
        shared = [name for name in self.steps if name not in packed]
        mine = [name for names in self.launch.packs[self.pack : self.pack + 1] for name in names]
        others = [name for index, names in enumerate(self.launch.packs) if index != self.pack for name in reversed(names)]
        return [name for name in (*shared, *mine, *others) if name in self.steps]

    def _verdict(self, spec: Spec) -> Verdict:
        status = self.store.status(spec)
        if status.state is State.DONE:
            return Verdict(finished=True)
        if status.state is State.RUNNING:
            return Verdict()
        if status.launch == self.launch.id and status.state in (State.FAILED, State.BLOCKED):
            return Verdict(finished=True)
        ours = status.launch == self.launch.id and status.state in (State.LOST, State.TIMEOUT)
        if ours and status.attempts >= self.launch.max_attempts:
            return Verdict(finished=self._give_up(spec, status))
        waiting = [need for need in spec.needs() if not self.store.is_done(need)]
        for need in waiting:
            if reason := self._hopeless(need):
                return Verdict(blocked_by=reason)
        return Verdict(ready=not waiting and not study.rankings_pending(spec))

    def _hopeless(self, need: Spec) -> str:
        """Why this need will not be done in this launch, or nothing."""
        status = self.store.status(need)
        if status.launch == self.launch.id and status.state in (State.FAILED, State.BLOCKED):
            return f"{key(need)} {status.state.value}: {status.message}"
        if status.state is not State.RUNNING and status.state is not State.DONE and key(need) not in self.asked:
            return f"{key(need)} is {status.state.value} and belongs to an earlier stage"
        return ""

    def _build(self, spec: Spec) -> bool:
        lease = self.store.claim(spec)
        if lease is None:
            return False
        try:
            with deadline(self._seconds(spec), lambda: self._time_out(spec, lease), code=UNFIT):
                build.build(self.workshop, spec, lease)
        except (Unfit, NotWritable):
            raise
        except (Exception, SystemExit):  # recorded where it happened; the other points go on
            logging.getLogger(__name__).info("%s failed, see its log.txt", key(spec))
        return True

    def _seconds(self, spec: Spec) -> float | None:
        """How long a step may take; a training has its own ways to go on, and takes days."""
        minutes = self.launch.how.point_minutes
        return None if minutes is None or isinstance(spec, TrainedCheckpoint) else 60 * minutes

    def _time_out(self, spec: Spec, lease: Lease) -> None:
        if lease.held():
            self.store.mark(spec, State.TIMEOUT, f"not finished after {self.launch.how.point_minutes:g} minutes")
        lease.release()

    def _give_up(self, spec: Spec, status: Status) -> bool:
        """Mark a step that has cost its workers their lives, or their time, too often; False if somebody else is at it."""
        lease = self.store.claim(spec)
        if lease is None:
            return False
        try:
            if self.store.is_done(spec):
                return False
            self.store.clean(spec)
            self.store.mark(spec, State.FAILED, f"{status.message} ({status.attempts} times); see log.txt")
        finally:
            lease.release()
        return True

    def _mark_blocked(self, spec: Spec, reason: str) -> None:
        status = self.store.status(spec)
        known = status.state is State.BLOCKED and status.launch == self.launch.id  # what another launch found is not this one's to say
        if not known and not study.rankings_pending(spec):
            self.store.mark(spec, State.BLOCKED, reason)


def _no_room(error: Exception) -> int:
    print(f"stopped: {error}; the same command goes on from here", flush=True)
    return NO_ROOM


def _is_preempted() -> bool:
    """Whether SLURM takes the node away for a better job: it says so with the same SIGTERM as scancel, and forgets a job that then ends."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        asked = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(r"\bPreemptTime=\d", asked.stdout) is not None


def _requeue() -> None:
    """Put this task back into SLURM's queue: it goes on where it stopped.

    A controller that does not answer is asked again until it does, or until the job's time is over.
    """
    job = os.environ.get("SLURM_JOB_ID")
    while job and (reason := _refused_by_controller(job)):
        print(f"SLURM does not take this job back now ({reason}); it is asked again until the job's time is over", flush=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # SLURM would queue a job again that scancel has just ended
        threading.Event().wait(REQUEUE_SECONDS)


def _refused_by_controller(job: str) -> str:
    """Why SLURM has not queued the job again, though it may do so later; empty if it has, or never will."""
    try:
        asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=REQUEUE_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer in {REQUEUE_ANSWER_SECONDS:.0f} s"
    except OSError as error:
        print(f"this job is not queued again: scontrol cannot be run ({error.strerror})", flush=True)
        return ""
    said = " ".join(asked.stderr.split())
    if asked.returncode and any(reason in said for reason in NEVER):
        print(f"this job is not queued again: {said}", flush=True)
        return ""
    return said or f"scontrol ended with code {asked.returncode}" if asked.returncode else ""


def _mirror(told: Launch) -> None:
    """Bring MLflow up to the store, for nobody else may be there to do it."""
    from cpt_lab import tracking

    try:
        tracking.sync(told.store(), told.study, told.tracking)
    except tracking.TrackingUnavailable as error:
        print(f"warning: {error}", flush=True)


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
