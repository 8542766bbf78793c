"""What is asked of a model, as specs: tasks and protocols."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_lab.specs.base import Spec, key
from cpt_lab.specs.corpora import BuiltinCorpus


class GenerateTask(Spec):
    """A generative task of question and answer, scored by the harness's filters and exact match (GSM8K's own form)."""

    kind: Literal["generate"] = "generate"
    name: str
    corpus: BuiltinCorpus
    split: Literal["validation", "test"] = "test"
    items: int = Field(gt=0, description="the first so many items of the split")
    shots: int = Field(default=0, ge=0, description="the first so many items of the train split stand before each question")
    max_new_tokens: int = Field(gt=0)


class PerplexityTask(Spec):
    """Perplexity of held-out documents: each document alone, in rolling windows of the model's context."""

    kind: Literal["perplexity"] = "perplexity"
    name: str
    corpus: BuiltinCorpus
    split: Literal["validation", "test"] = "validation"
    items: int = Field(gt=0)


class HarnessTask(Spec):
    """A task of the harness by its own name and defaults."""

    kind: Literal["harness"] = "harness"
    name: str
    shots: int | None = Field(default=None, ge=0, description="None: as the task itself says")
    limit: int | None = Field(default=None, gt=0)


Task = Annotated[GenerateTask | PerplexityTask | HarnessTask, Field(discriminator="kind")]


class Protocol(Spec):
    """The complete identity of an evaluation."""

    FOLDER = "protocols"
    PRODUCT = "protocol"
    kind: Literal["protocol"] = "protocol"
    name: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    harness: str = Field(description="lm-eval's version")
    seed: int = 0

    def needs(self) -> tuple[Spec, ...]:
        return tuple({key(task.corpus): task.corpus for task in self.tasks if not isinstance(task, HarnessTask)}.values())

    def label(self) -> str:
        return self.name
