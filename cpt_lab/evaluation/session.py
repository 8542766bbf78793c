"""Scoring many edits of one live model: requests are built once, and every score starts from them alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.evaluation.scores import Metric, Scores, write_scores
from cpt_lab.evaluation.scoring import TaskScores, score_outputs
from cpt_lab.evaluation.tasks import LoadedTask, check_harness, compiled_templates, load_tasks, quiet_harness

if TYPE_CHECKING:
    from cpt_lab.evaluation.language_model import LanguageModel
    from cpt_lab.execution import Execution
    from cpt_lab.specs import Protocol

__all__ = ["EvalSession", "Scores", "write_scores"]

Progress = Callable[[float, float, str], None]


class EvalSession:
    """A protocol made ready to score: documents, prompts and their batches, fixed for all models that follow."""

    def __init__(self, product: Path, spec: Protocol, *, tokenizer: Any, how: Execution) -> None:
        """`product` is the protocol's folder in the store; ValueError if its harness is not the installed one."""
        check_harness(spec)
        self.spec = spec
        self._tokenizer = tokenizer
        self._batch = how.eval_batch
        with quiet_harness():
            self._tasks = load_tasks(product, spec, tokenizer)

    def score(self, model: Any, progress: Progress | None = None) -> Scores:
        """The scores of a live transformers model as its weights are now: bit for bit the same for the same weights.

        Nothing is kept between calls, so the model may be edited in place before the next. ValueError, with the task, if the model's dtype
        is not the protocol's, prompts do not fit its context, or its logits are not finite.
        """
        from cpt_lab.evaluation.language_model import LanguageModel

        started = time.monotonic()
        if str(model.dtype) != f"torch.{self.spec.dtype}":
            raise ValueError(
                f"protocol {self.spec.name} is for {self.spec.dtype} and the model is {model.dtype}: load it as {self.spec.dtype}"
            )
        counter = _Counter(sum(len(task.requests) for task in self._tasks), progress)
        with quiet_harness(), compiled_templates():
            language_model = LanguageModel(model, self._tokenizer, batch=self._batch, on_rows=counter.add)
            parts = [self._score_task(task, language_model, counter) for task in self._tasks]
        return _together(self._tasks, parts, seconds=time.monotonic() - started)

    def _score_task(self, task: LoadedTask, language_model: LanguageModel, counter: _Counter) -> TaskScores:
        from cpt_lab.evaluation.language_model import NonFiniteLogits

        task.check_fits(language_model.max_length)
        counter.begin(len(task.requests))
        requests = [request for request in task.copies() for _ in range(request.repeats)]
        answer = getattr(language_model, requests[0].request_type)
        try:
            with _seeded(self.spec.seed, language_model.device):
                outputs = answer(requests, disable_tqdm=True)
        except NonFiniteLogits as error:
            raise ValueError(f"task {task.name}: {error}: look for the edit or the training step that broke the weights") from None
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


@contextmanager
def _seeded(seed: int, device: Any) -> Iterator[None]:
    """Within the block torch draws from the seed, for tasks that sample; after it, from where it was before."""
    import torch

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _together(tasks: list[LoadedTask], parts: list[TaskScores], *, seconds: float) -> Scores:
    """The scores of all tasks under one roof."""
    import pandas

    metrics: dict[str, Metric] = {}
    for task, part in zip(tasks, parts, strict=True):
        metrics.update({f"{task.name}/{name}": metric for name, metric in part.metrics.items()})
    return Scores(
        metrics=metrics,
        samples=pandas.DataFrame([row for part in parts for row in part.rows]),
        warnings=tuple(warning for part in parts for warning in part.warnings),
        primary=f"{tasks[0].name}/{parts[0].primary}",
        seconds=seconds,
    )
