"""What is here of a protocol's data: per task the items, their source and digest, or what to do. Reads files, asks no network."""

from __future__ import annotations

from dataclasses import dataclass

from cpt_lab.evaluation import hub_items, items
from cpt_lab.evaluation.code import runs_code
from cpt_lab.specs import ChatTask, GenerateTask, OlmesTask, PerplexityTask, Protocol, Task


@dataclass(frozen=True)
class Looked:
    """What was found of one task: `items` and `source` in words; `missing` says what to do, empty if all is there."""

    task: str
    items: str
    source: str
    missing: str = ""


@dataclass(frozen=True)
class Report:
    """What was found of a protocol."""

    protocol: str
    tasks: tuple[Looked, ...]

    @property
    def complete(self) -> bool:
        return not any(task.missing for task in self.tasks)


def look(protocol: Protocol) -> Report:
    """What is here of every task; what is read is checked against the digest that the task is pinned to."""
    return Report(protocol.label(), tuple(_look(task) for task in protocol.tasks))


def text(report: Report) -> str:
    """The report for a terminal: a line per task, and below it what is missing."""
    width = max(len(task.task) for task in report.tasks)
    lines = [f"protocol {report.protocol}:" + ("" if report.complete else " some items are missing")]
    for task in report.tasks:
        lines.append(f"  {task.task:<{width}}  {task.items}  {task.source}".rstrip())
        if task.missing:
            lines.append(f"  {'':<{width}}  -> {task.missing}")
    return "\n".join(lines)


def absent(protocol: Protocol) -> list[str]:
    """What is not on this machine, in a sentence each; looks whether it is there, not what it holds."""
    benchmarks = [task for task in protocol.tasks if isinstance(task, OlmesTask | ChatTask)]
    return [f"the items of task {task.name} are not on this machine: {items.advice(task)}" for task in benchmarks if not _is_here(task)]


def _look(task: Task) -> Looked:
    if isinstance(task, GenerateTask | PerplexityTask):
        return Looked(task.name, _count(task, task.items), f"{task.split} split of corpus {task.corpus.name}, which a run makes")
    if not isinstance(task, OlmesTask | ChatTask):
        return Looked(task.name, "the harness knows how many", "the harness's own data set, fetched from the hub by the first run")
    if not _is_here(task):
        return Looked(task.name, _count(task, task.whole), "not on this machine", items.advice(task))
    try:
        found = items.load(task)
    except ValueError as error:
        return Looked(task.name, _count(task, task.whole), "cannot be used", str(error))
    pinned = "as pinned" if task.data == items.digest(found) and task.source != "files" else "yours"
    note = "; its answers are programs: execution.allow_code_execution=true" if runs_code(task) else ""
    return Looked(task.name, _count(task, len(found.documents)), f"{found.source}, digest {items.digest(found)} ({pinned}){note}")


def _is_here(task: OlmesTask | ChatTask) -> bool:
    if task.source == "files":
        return True
    return (task.source != "hub" and items.carried(task)) or (task.source != "olmes" and hub_items.is_cached(task.name))


def _count(task: Task, whole: int | None) -> str:
    total = f"{whole:,} items" if whole is not None else "all items"
    return f"{task.subset} {task.limit:,} of {total}" if task.mark else total
