"""Which model side answers a task: the fast one, or the harness's own where that is asked for or nothing else will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from cpt_lab.evaluation.eval_plan import TaskPlan, plan_task
from cpt_lab.evaluation.fast_model import FastModel
from cpt_lab.evaluation.language_model import LanguageModel
from cpt_lab.evaluation.prefix_attention import why_not
from cpt_lab.evaluation.scores import Answered
from cpt_lab.evaluation.tasks import LoadedTask

if TYPE_CHECKING:
    from cpt_lab.execution import Execution

REFERENCE_BATCH = 64  # prompts in a forward pass of the harness's model, where nothing else is said

Manners = tuple[object, ...]


def manners(model: Any, tokenizer: Any) -> Manners:
    """What tokens and batches are made from, apart from the texts: the same for all edits of a model."""
    config = model.config
    return (config.model_type, _max_length(model, tokenizer), str(model.generation_config), str(model.device), why_not(model))


class Sides:
    """The model sides of a session, for one model after another of the same manners."""

    def __init__(self, tasks: Sequence[LoadedTask], model: Any, tokenizer: Any, *, how: Execution, seed: int) -> None:
        self.manners = manners(model, tokenizer)
        self.max_length = _max_length(model, tokenizer)
        self._tokenizer = tokenizer
        self._how = how
        self._seed = seed
        self._model = model
        self._on_rows: Callable[[int], None] = lambda _: None
        why = "" if how.mode == "reference" else why_not(model)
        self._plans = {task.name: TaskPlan(task.name, (), why) for task in tasks}
        self._fast: FastModel | None = None
        if how.mode == "fast" and not why:
            encoder = self._reference(model)
            self._plans = {task.name: plan_task(task, encoder, model.generation_config) for task in tasks}
            self._fast = FastModel(tuple(self._plans.values()), tokenizer, model, batch=_rows(how), seed=seed)
        self._digests = {name: plan.digest() if self._is_fast(plan) else "" for name, plan in self._plans.items()}

    def begin(self, model: Any, on_rows: Callable[[int], None]) -> None:
        """Go on with this model, its weights as they are now; `on_rows` is told how many more requests are answered."""
        self._model, self._on_rows = model, on_rows
        if self._fast is not None:
            self._fast.begin(model)

    def outputs(self, task: LoadedTask) -> list[Any]:
        """The answers to a task's requests, each as often as it is repeated, in the form that the harness's model gives them."""
        plan = self._plans[task.name]
        if self._fast is None or not self._is_fast(plan):
            return self._by_harness(task)
        answers = self._fast.answers(plan, self._on_rows)
        rolling = task.requests[0].request_type == "loglikelihood_rolling"
        outputs: list[Any] = []
        for place, request in enumerate(task.requests):
            first = answers.get((place, 0), (0.0, True))  # of a text without tokens
            given = [answers.get((place, repetition), first) for repetition in range(request.repeats)]
            outputs += [answer[0] for answer in given] if rolling else given
        return outputs

    def answered(self, name: str) -> Answered:
        """How a task was answered."""
        plan = self._plans[name]
        if self._fast is None or not self._is_fast(plan):
            return {"mode": "reference", "why": plan.why_not, "plan": "", "prefix": [], "batches": []}
        prefix = [len(part.prefix) for part in plan.parts]
        return {"mode": "fast", "why": "", "plan": self._digests[name], "prefix": prefix, "batches": self._fast.batches(plan)}

    def _is_fast(self, plan: TaskPlan) -> bool:
        return self._how.mode == "fast" and not plan.why_not

    def _by_harness(self, task: LoadedTask) -> list[Any]:
        language_model = self._reference(self._model)
        requests = [request for request in task.copies() for _ in range(request.repeats)]
        with _seeded(self._seed, language_model.device):
            outputs: list[Any] = getattr(language_model, requests[0].request_type)(requests, disable_tqdm=True)
        return outputs

    def _reference(self, model: Any) -> LanguageModel:
        batch = REFERENCE_BATCH if self._how.eval_batch == "auto" else self._how.eval_batch
        return LanguageModel(model, self._tokenizer, batch=self._how.rows(batch), on_rows=self._on_rows)


def _rows(how: Execution) -> int | Literal["auto"]:
    """Rows of a batch of the fast model, which finds out itself what fits."""
    return how.eval_batch if how.eval_batch == "auto" else how.rows(how.eval_batch)


def _max_length(model: Any, tokenizer: Any) -> int:
    """The model's context as the harness finds it."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.config, tokenizer))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within the block torch draws from the seed, for tasks that sample; after it, from where it was before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
