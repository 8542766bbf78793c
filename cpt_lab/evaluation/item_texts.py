"""The texts of a protocol's test items: what a training corpus must not hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpt_lab.evaluation.items import drawn
from cpt_lab.evaluation.tasks import load_harness_tasks, local_name
from cpt_lab.specs import HarnessTask, Protocol

Texts = dict[str, list[list[str]]]


def item_texts(spec: Protocol, product: Path) -> Texts:
    """Task -> items -> the texts of each: question, answer, choices, program, whatever its documents hold; of the items that are scored.

    `product` is that of the protocol; of the harness's own tasks the documents are loaded anew.
    """
    theirs = load_harness_tasks(spec)
    found: Texts = {}
    for task in spec.tasks:
        if isinstance(task, HarnessTask):
            documents: list[Any] = list(theirs[task.name].eval_docs)
            if task.limit is not None and task.limit < len(documents):
                places = drawn(len(documents), task.limit, spec.seed) if task.subset == "seeded" else range(task.limit)
                documents = [documents[place] for place in places]
        else:
            lines = (product / local_name(task) / "test.jsonl").read_text(encoding="utf-8").split("\n")
            documents = [json.loads(line) for line in lines if line]
        found[task.name] = [list(strings(document)) for document in documents]
    return found


def strings(value: Any) -> Iterator[str]:
    """All texts inside a document, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)
