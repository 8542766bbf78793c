"""Scoring many edits of one live model: requests are built once, and every score starts from them alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.evaluation.code import check_consent
from cpt_lab.evaluation.scores import Answered, Metric, Scores, write_scores
from cpt_lab.evaluation.scoring import TaskScores, means_of, score_outputs
from cpt_lab.evaluation.tasks import LoadedTask, check_harness, compiled_templates, load_tasks, quiet_harness

if TYPE_CHECKING:
    from cpt_lab.evaluation.sides import Sides
    from cpt_lab.execution import Execution
    from cpt_lab.specs import Protocol

__all__ = ["EvalSession", "NonFiniteScores", "Scores", "write_scores"]

Progress = Callable[[float, float, str], None]


class NonFiniteScores(ValueError):
    """A task could not be scored, as the model says NaN or infinity."""


class EvalSession:
    """A protocol made ready to score: documents, prompts and their batches, fixed for all models that follow."""

    def __init__(self, product: Path, spec: Protocol, *, tokenizer: Any, how: Execution) -> None:
        """`product` is the protocol's folder in the store; ValueError if its harness is not installed, or code would run unasked."""
        check_harness(spec)
        check_consent(spec, allowed=how.allow_code_execution)
        self.spec = spec
        self._tokenizer = tokenizer
        self._how = how
        self._sides: Sides | None = None
        with quiet_harness():
            self._tasks = load_tasks(product, spec, tokenizer)

    def score(self, model: Any, progress: Progress | None = None) -> Scores:
        """The scores of a live transformers model as its weights are now: the same for the same weights.

        The model may be edited in place before the next call: what is kept between calls is found again only under the weights that
        made it. ValueError, with the task, if the model's dtype is not the protocol's, prompts do not fit its context, or its logits
        are not finite.
        """
        started = time.monotonic()
        if str(model.dtype) != f"torch.{self.spec.dtype}":
            raise ValueError(
                f"protocol {self.spec.name} is for {self.spec.dtype} and the model is {model.dtype}: load it as {self.spec.dtype}"
            )
        counter = _Counter(sum(len(task.requests) for task in self._tasks), progress)
        with quiet_harness(), compiled_templates():
            sides = self._sides_of(model, counter)
            parts = [self._score_task(task, sides, counter) for task in self._tasks]
            answered = {task.name: sides.answered(task.name) for task in self._tasks}
        return _together(self.spec, self._tasks, parts, answered=answered, seconds=time.monotonic() - started)

    def _sides_of(self, model: Any, counter: _Counter) -> Sides:
        """What answers for this model; plans and what was kept are those of the last model, if it encodes and writes as this one does."""
        from cpt_lab.evaluation import sides as answering

        if self._sides is None or self._sides.manners != answering.manners(model, self._tokenizer):
            self._sides = answering.Sides(self._tasks, model, self._tokenizer, how=self._how, seed=self.spec.seed)
        self._sides.begin(model, counter.add)
        return self._sides

    def _score_task(self, task: LoadedTask, sides: Sides, counter: _Counter) -> TaskScores:
        from cpt_lab.evaluation.language_model import NonFiniteLogits

        task.check_fits(sides.max_length)
        counter.begin(len(task.requests))
        try:
            outputs = sides.outputs(task)
        except NonFiniteLogits as error:
            raise NonFiniteScores(f"task {task.name}: {error}: look for the edit or the training step that broke the weights") from None
        counter.end()
        return score_outputs(task, outputs, self._tokenizer)


@dataclass
class _Counter:
    """How many requests of all tasks are answered. A request may take several rows, or share one: tasks end on the exact number."""

    total: int
    tell: Progress | None
    before: int = field(default=0, init=False)
    here: int = field(default=0, init=False)
    rows: int = field(default=0, init=False)

    def begin(self, requests: int) -> None:
        self.here, self.rows = requests, 0

    def add(self, rows: int) -> None:
        self.rows += rows
        self._report(self.before + min(self.rows, self.here))

    def end(self) -> None:
        self.before += self.here
        self._report(self.before)

    def _report(self, done: int) -> None:
        if self.tell is not None:
            self.tell(done, self.total, "requests")


def _together(spec: Protocol, tasks: list[LoadedTask], parts: list[TaskScores], *, answered: dict[str, Answered], seconds: float) -> Scores:
    """The scores of all tasks under one roof."""
    import pandas

    metrics: dict[str, Metric] = {}
    for task, part in zip(tasks, parts, strict=True):
        metrics.update({f"{task.name}/{name}": metric for name, metric in part.metrics.items()})
    return Scores(
        metrics={**metrics, **means_of(spec, metrics)},
        samples=pandas.DataFrame([row for part in parts for row in part.rows]),
        warnings=tuple(warning for part in parts for warning in part.warnings),
        primary=spec.primary or f"{tasks[0].name}/{parts[0].primary}",
        seconds=seconds,
        answered=answered,
    )
