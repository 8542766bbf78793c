"""A protocol as files of the harness: one task file per task and its documents, all that `lm_eval --include_path` needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import Document, read_documents
from cpt_lab.evaluation import forms, items
from cpt_lab.evaluation.task_files import write_task_file
from cpt_lab.evaluation.tasks import WHOLE, check_harness, load_harness_tasks, local_name
from cpt_lab.specs import ChatTask, GenerateTask, HarnessTask, OlmesTask, PerplexityTask, Protocol, key

if TYPE_CHECKING:
    from cpt_lab.store import Workspace


def build_protocol(spec: Protocol, corpora: Mapping[str, Path], work: Workspace) -> None:
    """Write one `cpt_<name>.yaml` per task and its documents into `work.product`, and items.json: what was found where.

    `corpora` holds the product folder of every corpus that the tasks read, by the key of its spec. The files work with the harness's own
    command line from any folder: `lm_eval run --tasks cpt_<name> --include_path <product>`, chat tasks with `--apply_chat_template`;
    tasks of the harness itself need no file, but their data is fetched now. ValueError if a corpus is too short or has other fields, or
    if the data of a task cannot be had or is not what the task is pinned to; KeyError for a task that the harness does not know.
    """
    check_harness(spec)
    _check_names(spec)
    load_harness_tasks(spec)
    facts = {}
    for task in spec.tasks:
        if isinstance(task, OlmesTask | ChatTask):
            facts[task.name] = _write_benchmark(task, spec.seed, work)
        elif not isinstance(task, HarnessTask):
            _write_corpus_task(task, corpora[key(task.corpus)], spec.seed, work)
    (work.product / "items.json").write_text(json.dumps(facts, indent=1) + "\n")


def _check_names(spec: Protocol) -> None:
    """ValueError if a task's name is no part of a metric's name, or stands twice."""
    names = [task.name for task in spec.tasks]
    for name in (*names, *(mean.name for mean in spec.means)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"task name {name!r} in protocol {spec.name}: use letters, digits, '_', '-' and '.'")
        if names.count(name) > 1:
            raise ValueError(f"task name {name!r} stands twice in protocol {spec.name}: give every task its own")


def _write_benchmark(task: OlmesTask | ChatTask, seed: int, work: Workspace) -> dict[str, Any]:
    """The task file and its documents; returns what was found where."""
    found = items.load(task)
    documents = items.chosen(found.documents, task, seed)
    settings = {**forms.form(task, found.shots), "metadata": {"version": float(task.version), WHOLE: len(found.documents)}}
    _write_task(task, settings, {"test": documents}, work)
    return {"source": found.source, "items": len(documents), "of": len(found.documents), "digest": items.digest(found)}


def _write_corpus_task(task: GenerateTask | PerplexityTask, corpus: Path, seed: int, work: Workspace) -> None:
    splits = _documents(task, corpus, seed)
    settings = forms.generate(task, task.shots) if isinstance(task, GenerateTask) else forms.perplexity()
    _write_task(task, {**settings, "metadata": {"version": 1.0, WHOLE: task.items}}, splits, work)


def _write_task(task: Any, settings: forms.Settings, splits: Mapping[str, Sequence[Mapping[str, Any]]], work: Workspace) -> None:
    """The task file, and `<task>/<split>.jsonl` beside it."""
    name = local_name(task)
    (work.product / name).mkdir()
    for split, documents in splits.items():
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        (work.product / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    # The product is renamed when it is whole: the file must name the place where it will lie then.
    place = work.folder.absolute() / "product" / name
    data = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(place / f"{split}.jsonl") for split in splits}},
        "test_split": "test",
        **settings,
    }
    write_task_file(work.product / f"{name}.yaml", data)


def _documents(task: GenerateTask | PerplexityTask, corpus: Path, seed: int) -> dict[str, list[Document]]:
    """The documents a task reads: its items as `test`, its shots as `train`."""
    fields = ("question", "answer") if isinstance(task, GenerateTask) else ("text",)
    asked = _first(task, corpus, task.split, count=task.items, fields=fields)
    splits = {"test": items.chosen(asked, task, seed)}
    if isinstance(task, GenerateTask) and task.shots:
        splits["train"] = _first(task, corpus, "train", count=task.shots, fields=fields)
    return splits


def _first(task: GenerateTask | PerplexityTask, corpus: Path, split: str, *, count: int, fields: tuple[str, ...]) -> list[Document]:
    """The first `count` documents of a split with nothing but these fields; ValueError if there are fewer or one lacks a field."""
    documents = list(islice(read_documents(corpus, split), count))
    if len(documents) < count:
        raise ValueError(
            f"task {task.name} asks for {count} items of {task.corpus.name}/{split}, which has {len(documents)}: "
            "lower its items or raise the corpus's held_out"
        )
    for number, document in enumerate(documents):
        for field in fields:
            if not document.get(field):
                raise ValueError(
                    f"task {task.name} of kind {task.kind} needs a {field} in every document, and document {number} of "
                    f"{task.corpus.name}/{split} has {', '.join(document) or 'nothing'}: choose another corpus"
                )
    return [{field: document[field] for field in fields} for document in documents]
