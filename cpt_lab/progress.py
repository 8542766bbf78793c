"""What a launch is doing, for the terminal: bars with rates and remaining time, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cpt_lab import study
from cpt_lab.plan import STAGES
from cpt_lab.specs import Spec, key, settled
from cpt_lab.store import State, Status, Store

LINE_SECONDS = 15.0  # without a terminal, at most one line about a running build in so long


class Watch:
    """Follows the states of (stage, spec) steps in the store; nothing here is told by those who build them."""

    def __init__(self, store: Store, steps: Iterable[tuple[str, Spec]], console: Console | None = None) -> None:
        self._store = store
        self._steps = list(steps)
        self._console = console or Console()
        self._bars = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>18}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._spoken = 0.0
        self._said_finished = False
        self._seen: dict[str, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def refresh(self) -> None:
        """Look at the store once and show what changed."""
        counts: dict[str, list[int]] = {}
        running: list[tuple[Spec, dict[str, Any]]] = []
        for index, (stage, spec) in enumerate(self._steps):
            spec = self._settled(index, stage, spec)
            status = self._status(spec)
            count = counts.setdefault(stage, [0, 0])
            count[1] += 1
            count[0] += status.state in (State.DONE, State.FAILED, State.BLOCKED)
            if status.state is State.RUNNING and (progress := self._store.progress(spec)):
                running.append((spec, progress))
        counts = {stage: counts[stage] for stage in STAGES if stage in counts}
        if self._console.is_terminal:
            self._draw(counts, running)
        else:
            self._speak(counts, running)

    def _settled(self, index: int, stage: str, spec: Spec) -> Spec:
        if study.rankings_pending(spec):
            spec = settled(spec, study.orders(self._store, [spec]))
            self._steps[index] = (stage, spec)
        return spec

    def _status(self, spec: Spec) -> Status:
        name = key(spec)
        if name in self._finished:
            return Status(State.DONE)
        status = self._store.status(spec)
        if status.state is State.DONE:
            self._finished.add(name)
        if status.launch != self._store.launch and status.state in (State.FAILED, State.BLOCKED):
            return Status(State.PLANNED)  # that was an earlier launch
        return status

    def _draw(self, counts: dict[str, list[int]], running: list[tuple[Spec, dict[str, Any]]]) -> None:
        shown = set()
        for stage, (done, total) in counts.items():
            self._bar(f"[bold]{stage}", done, total, "")
            shown.add(f"[bold]{stage}")
        for spec, progress in running:
            name = f"  {spec.label()[:40]}"
            shown.add(name)
            self._bar(name, int(progress["done"]), int(progress["total"]), progress["unit"])
        for name in set(self._tasks) - shown:
            self._bars.remove_task(self._tasks.pop(name))

    def _bar(self, name: str, done: int, total: int, unit: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, rate="")
        task = self._tasks[name]
        speed = self._bars._tasks[task].speed
        self._bars.update(task, completed=done, total=total, rate=f"{speed:,.0f} {unit}/s" if speed and unit else "")

    def _speak(self, counts: dict[str, list[int]], running: list[tuple[Spec, dict[str, Any]]]) -> None:
        now = time.monotonic()
        finished = all(done == total for done, total in counts.values())
        if self._said_finished or (now - self._spoken < LINE_SECONDS and not finished):
            return
        self._spoken, self._said_finished = now, finished
        stages = ", ".join(f"{stage} {done}/{total}" for stage, (done, total) in counts.items())
        builds = "; ".join(self._build_in_words(spec, progress) for spec, progress in running)
        self._console.print(f"{stages}{' | ' if builds else ''}{builds}", highlight=False, soft_wrap=True)

    def _build_in_words(self, spec: Spec, progress: dict[str, Any]) -> str:
        """`cpt-math 40 %, 5,200 tokens/s, 0:31 left`, the rate being that since the last look."""
        name = key(spec)
        before, self._seen[name] = self._seen.get(name), (progress["done"], progress["time"])
        text = f"{spec.label()[:40]} {100 * progress['done'] / max(progress['total'], 1):.0f} %"
        if before is None or progress["time"] <= before[1] or progress["done"] <= before[0]:
            return text
        rate = (progress["done"] - before[0]) / (progress["time"] - before[1])
        left = round((progress["total"] - progress["done"]) / rate)
        return f"{text}, {rate:,.0f} {progress['unit']}/s, {left // 60}:{left % 60:02} left"
