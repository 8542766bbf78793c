"""What is asked of a model, as specs: tasks and protocols."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cpt_lab.names import unknown
from cpt_lab.specs.base import Spec, key
from cpt_lab.specs.benchmarks import CHAT, GENERATE_METRICS, OLMES, OUTPUT_TOKENS, PERPLEXITY_METRICS, Benchmark, ItemsOf
from cpt_lab.specs.corpora import Corpus

Source = Literal["auto", "olmes", "hub", "files"]
NOMINAL_ITEMS, NOMINAL_TOKENS = 1000, 500  # of a task that says nothing about itself


class Sampled(Spec):
    """A task that can be looked at cheaply: on `limit` of its items only, the first ones or a seeded draw."""

    limit: int | None = Field(default=None, gt=0, description="None: all items")
    subset: Literal["first", "seeded"] = "first"

    @property
    def whole(self) -> int | None:
        """How many items the task has without a limit; None if only its data knows."""
        return None

    @property
    def count(self) -> int | None:
        """How many items are scored; None if only the task's data knows."""
        known = [number for number in (self.limit, self.whole) if number is not None]
        return min(known, default=None)

    @property
    def mark(self) -> str:
        """`first50`, `seeded50`, or nothing where the whole task is scored."""
        if self.limit is None or (self.whole is not None and self.limit >= self.whole):
            return ""
        return f"{self.subset}{self.limit}"

    @property
    def metrics(self) -> tuple[str, ...] | None:
        """The names of its metrics, its own first; None if only the harness knows."""
        return None

    @property
    def tokens(self) -> int:
        """About how many tokens a model reads and writes for it."""
        return (self.count or NOMINAL_ITEMS) * NOMINAL_TOKENS


class GenerateTask(Sampled):
    """A generative task of question and answer, scored by the harness's filters and exact match (GSM8K's own form)."""

    kind: Literal["generate"] = "generate"
    name: str
    corpus: Corpus
    split: Literal["validation", "test"] = "test"
    items: int = Field(gt=0, description="the first so many items of the split")
    shots: int = Field(default=0, ge=0, description="the first so many items of the train split stand before each question")
    max_new_tokens: int = Field(gt=0)

    @property
    def whole(self) -> int:
        return self.items

    @property
    def metrics(self) -> tuple[str, ...]:
        return GENERATE_METRICS

    @property
    def tokens(self) -> int:
        return (self.count or 0) * (self.max_new_tokens + 100 * (self.shots + 1))


class PerplexityTask(Sampled):
    """Perplexity of documents of a split: each document alone, in rolling windows of the model's context."""

    kind: Literal["perplexity"] = "perplexity"
    name: str
    corpus: Corpus
    split: Literal["train", "validation", "test"] = "validation"
    items: int = Field(gt=0)

    @property
    def whole(self) -> int:
        return self.items

    @property
    def metrics(self) -> tuple[str, ...]:
        return PERPLEXITY_METRICS


class HarnessTask(Sampled):
    """A task of the harness by its own name and defaults."""

    kind: Literal["harness"] = "harness"
    name: str
    shots: int | None = Field(default=None, ge=0, description="None: as the task itself says")


class BenchmarkTask(Sampled):
    """A benchmark in the form of one of the papers. Its documents are pinned by `data`, wherever they come from.

    `source` and `folder` say where to look for them and are no part of the identity.
    """

    NOT_IDENTITY = frozenset({"source", "folder"})
    name: str
    version: int = Field(default=1, description="of the form: prompt, stops, how answers are read")
    data: str | None = Field(default=None, description="digest of its documents and shots; None: what the source says")
    source: Source = "auto"
    folder: str | None = Field(default=None, description="of source=files: where NAME.jsonl lies")

    @property
    def benchmark(self) -> Benchmark:
        raise NotImplementedError

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.benchmark.metrics

    @property
    def tokens(self) -> int:
        facts = self.benchmark
        return (self.count or 0) * facts.choices * (facts.prompt_tokens + facts.answer_tokens)

    @model_validator(mode="after")
    def _files_have_a_folder(self) -> Self:
        if self.source == "files" and self.folder is None:
            raise ValueError(f"task {self.name} has source=files and no folder: give the folder where {self.name}.jsonl lies")
        return self


class OlmesTask(BenchmarkTask):
    """A task of P's evaluation (3.2) in the form of OLMES, prompts byte for byte."""

    kind: Literal["olmes"] = "olmes"
    items: ItemsOf = Field(default="olmes", description="OLMES scores 1000 items where a split has more; all: the whole split")

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, data: Any) -> Any:
        return _pinned(data, OLMES, "olmes task")

    @property
    def benchmark(self) -> Benchmark:
        return OLMES[self.name]

    @property
    def whole(self) -> int:
        return self.benchmark.count(self.items)


class ChatTask(BenchmarkTask):
    """A task of T's evaluation (C.1, H.1): a chat prompt, sampled answers, the final one in a box; `repeats` answers to every prompt."""

    kind: Literal["chat"] = "chat"
    temperature: float = Field(default=0.2, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int = Field(default=1024, gt=0)
    repeats: int = Field(default=3, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _pinned(cls, data: Any) -> Any:
        return _pinned(data, CHAT, "chat task")

    @model_validator(mode="after")
    def _greedy_says_it_once(self) -> Self:
        if self.temperature == 0 and self.repeats > 1:
            raise ValueError(f"task {self.name} is greedy (temperature=0) and says the same {self.repeats} times: give repeats=1")
        return self

    @property
    def benchmark(self) -> Benchmark:
        return CHAT[self.name]

    @property
    def whole(self) -> int:
        return self.benchmark.items

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self.benchmark.metrics, OUTPUT_TOKENS)

    @property
    def tokens(self) -> int:
        return (self.count or 0) * self.repeats * (self.benchmark.prompt_tokens + self.max_new_tokens)


def _pinned(data: Any, known: dict[str, Benchmark], what: str) -> Any:
    """The fields of a benchmark's task with the version and the documents that are known of it; ValueError for an unknown name."""
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return data
    if data["name"] not in known:
        raise ValueError(f"{unknown(what, data['name'], known)}; any task of the harness goes by `kind: harness`")
    facts = known[data["name"]]
    digest = facts.digest_of(data.get("items", "olmes"))
    return {"version": facts.version, **data, "data": data.get("data") or digest}


Task = Annotated[GenerateTask | PerplexityTask | HarnessTask | OlmesTask | ChatTask, Field(discriminator="kind")]


class Mean(Spec):
    """A metric of its own, `<name>/<metric>`: the mean of these metrics, each task weighing the same."""

    name: str
    metric: str = "mean"
    of: tuple[str, ...] = Field(min_length=2, description="<task>/<metric>")

    @property
    def full_name(self) -> str:
        return f"{self.name}/{self.metric}"


class Protocol(Spec):
    """The complete identity of an evaluation."""

    FOLDER = "protocols"
    PRODUCT = "protocol"
    kind: Literal["protocol"] = "protocol"
    name: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    means: tuple[Mean, ...] = ()
    primary: str | None = Field(default=None, description="`<task>/<metric>`; None: the first metric of the first task")
    dtype: Literal["float32", "bfloat16"] = "float32"
    harness: str = Field(description="lm-eval's version")
    seed: int = 0

    @field_validator("means")
    @classmethod
    def _no_mean_is_a_task(cls, means: tuple[Mean, ...], info: Any) -> tuple[Mean, ...]:
        taken = {task.name for task in info.data.get("tasks", ())}
        twice = [mean.name for mean in means if mean.name in taken]
        if twice:
            raise ValueError(f"the mean {twice[0]!r} has the name of a task: give it another")
        return means

    @model_validator(mode="after")
    def _metrics_are_there(self) -> Self:
        for name in (*(part for mean in self.means for part in mean.of), *filter(None, (self.primary,))):
            self.check_metric(name)
        return self

    def check_metric(self, name: str) -> None:
        """ValueError if no task, or no mean, has a metric of this name; what only the harness knows may be."""
        task_name = name.partition("/")[0]
        known = [mean.full_name for mean in self.means]
        for task in self.tasks:
            if task.metrics is None and task.name == task_name and "/" in name:
                return
            known += [f"{task.name}/{metric}" for metric in task.metrics or ("METRIC",)]
        if name not in known:
            raise ValueError(unknown(f"metric of protocol {self.name}", name, known))

    def needs(self) -> tuple[Spec, ...]:
        corpora = (task.corpus for task in self.tasks if isinstance(task, GenerateTask | PerplexityTask))
        return tuple({key(corpus): corpus for corpus in corpora}.values())

    def label(self) -> str:
        """The name, marked where only a part of the items is scored: such scores are cheap looks."""
        marks = dict.fromkeys(task.mark for task in self.tasks if task.mark)
        return "-".join([self.name, *marks])
