"""Tasks on a corpus, run side by side by DataTrove's executor: what is finished is marked, and an interrupted run goes on from there."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from cpt_lab.data.shards import Group, Shard

with redirect_stderr(io.StringIO()):  # DataTrove tells the terminal of everything, from its import on
    from datatrove.executor.local import LocalPipelineExecutor

LISTED = "groups.json"
Progress = Callable[[float, float, str], None]


class Step(Protocol):
    """What is done with one group of shards; an instance must be picklable, and small, for every process gets its own."""

    def work(self, group: Group, rank: int) -> None: ...


class Executor(LocalPipelineExecutor):
    """DataTrove's local executor on processes that can be interrupted, end when their parent does, and are missed if they are killed."""

    def __init__(self, pipeline: Sequence[Any], *, tasks: int, workers: int, folder: Path, progress: Progress) -> None:
        super().__init__(list(pipeline), tasks=tasks, workers=workers, logging_dir=str(folder / "datatrove"))
        self._progress = progress

    def run(self) -> None:
        left = self.get_incomplete_ranks()
        done = self.tasks - len(left)
        for count, _ in enumerate(self._finished(left), start=done + 1):
            self._progress(count, self.tasks, "pieces")

    def _finished(self, ranks: Sequence[int]) -> Iterator[Any]:
        if self.workers == 1 or len(ranks) <= 1:
            yield from map(self._run_for_rank, ranks)
            return
        pool = ProcessPoolExecutor(min(self.workers, len(ranks)), mp_context=get_context("forkserver"))
        processes: dict[int, BaseProcess] = {}
        try:
            tasks = [pool.submit(self._run_for_rank, rank) for rank in ranks]
            processes = dict(pool._processes)
            yield from (task.result() for task in as_completed(tasks))
        except BrokenProcessPool:
            pool.shutdown(wait=True, cancel_futures=True)
            raise RuntimeError(how_they_ended([process.exitcode for process in processes.values()])) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _run_for_rank(self, rank: int, local_rank: int = 1, node_rank: int = -1) -> Any:
        with quiet():
            return super()._run_for_rank(rank, local_rank, node_rank)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_progress"}  # told by the parent alone


class _Task:
    """A step as DataTrove calls it: with its rank, whose group it reads from the list beside it."""

    def __init__(self, step: Step, listed: Path) -> None:
        self._step = step
        self._listed = listed

    def __call__(self, _: Any, rank: int, __: int) -> None:
        self._step.work(read_groups(self._listed)[rank], rank)

    def __repr__(self) -> str:
        return type(self._step).__name__


def run(step: Step, groups: Sequence[Group], *, processes: int, scratch: Path, progress: Progress) -> None:
    """Do a step with every group, in so many processes at a time; groups that were done before in this scratch folder are not done again.

    The step writes what it makes into `scratch`, by names made of the rank. ValueError as the step raises it; RuntimeError if a process
    was killed or could not start.
    """
    prepare(groups, scratch)
    executor = Executor([_Task(step, scratch / LISTED)], tasks=len(groups), workers=processes, folder=scratch, progress=progress)
    try:
        executor.run()
    except ValueError as error:
        raise ValueError(str(error)) from None  # without what the process wrote of its stack


def how_they_ended(codes: Sequence[int | None]) -> str:
    """Why a pool of processes broke, by their exit codes: the pool itself ends those that are left by SIGTERM."""
    signals = [-code for code in codes if code is not None and code < 0 and code != -signal.SIGTERM]
    left = [code for code in codes if code is not None and code > 0]
    if signal.SIGKILL in signals or not (signals or left):
        return "a process that read the corpus was killed, perhaps for memory: give fewer of them (execution.threads)"
    if signals:
        return f"a process that read the corpus crashed ({signal.Signals(signals[0]).name}): read with execution.threads=1 to see where"
    return (
        f"a process that was to read the corpus ended by itself with exit code {left[0]}, before it began or while it worked: what it said "
        "of it stands in this one's log; execution.threads=1 reads without processes"
    )


def prepare(groups: Sequence[Group], scratch: Path) -> None:
    """Make the scratch folder of these groups, empty unless it is theirs already."""
    listed = json.dumps([[shard.as_json() for shard in group] for group in groups])
    if not (scratch / LISTED).exists() or (scratch / LISTED).read_text() != listed:
        shutil.rmtree(scratch, ignore_errors=True)  # of other files: nothing of it is of use
        scratch.mkdir(parents=True)
        (scratch / LISTED).write_text(listed)


def read_groups(path: Path) -> list[Group]:
    """The groups of shards that `run` listed."""
    return [tuple(Shard.from_json(shard) for shard in group) for group in json.loads(path.read_text())]


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block DataTrove writes to its log files alone."""
    with redirect_stderr(io.StringIO()):
        yield
