"""A protocol as files of the harness: one task file per task and its documents, all that `lm_eval --include_path` needs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import Document, read_documents
from cpt_lab.evaluation.tasks import check_harness, load_harness_tasks, local_name
from cpt_lab.specs import GenerateTask, HarnessTask, PerplexityTask, Protocol, key

if TYPE_CHECKING:
    from cpt_lab.store import Workspace

STOPS = ("Question:", "</s>", "<|im_end|>")

# The harness's own GSM8K: what counts as the answer, and what does not count as a difference.
STRICT = {"name": "strict-match", "filter": [{"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"}, {"function": "take_first"}]}
FLEXIBLE = {
    "name": "flexible-extract",
    "filter": [
        {"function": "regex", "group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
        {"function": "take_first"},
    ],
}
EXACT_MATCH = {
    "metric": "exact_match",
    "aggregation": "mean",
    "higher_is_better": True,
    "ignore_case": True,
    "ignore_punctuation": False,
    "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
}


def build_protocol(spec: Protocol, corpora: Mapping[str, Path], work: Workspace) -> None:
    """Write one `cpt_<name>.yaml` per task and its documents into `work.product`.

    `corpora` holds the product folder of every corpus that the tasks read, by the key of its spec. The files work with the harness's own
    command line from any folder: `lm_eval run --tasks cpt_<name> --include_path <product>`; tasks of the harness itself need no file,
    but their data is fetched now. ValueError if a corpus is too short or has other fields, or if the harness's data cannot be had;
    KeyError for a task that the harness does not know.
    """
    check_harness(spec)
    _check_names(spec)
    load_harness_tasks(spec)
    for task in spec.tasks:
        if not isinstance(task, HarnessTask):
            _write_task(task, corpora[key(task.corpus)], work)


def _check_names(spec: Protocol) -> None:
    """ValueError if a task's name is no part of a metric's name, or stands twice."""
    names = [task.name for task in spec.tasks]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"task name {name!r} in protocol {spec.name}: use letters, digits, '_', '-' and '.'")
        if names.count(name) > 1:
            raise ValueError(f"task name {name!r} stands twice in protocol {spec.name}: give every task its own")


def _write_task(task: GenerateTask | PerplexityTask, corpus: Path, work: Workspace) -> None:
    """The task file, and `<task>/<split>.jsonl` beside it."""
    name = local_name(task)
    splits = _documents(task, corpus)
    (work.product / name).mkdir()
    for split, documents in splits.items():
        lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        (work.product / name / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    # The product is renamed when it is whole: the file must name the place where it will lie then.
    place = work.folder.absolute() / "product" / name
    config = _generate(task) if isinstance(task, GenerateTask) else _perplexity()
    data = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(place / f"{split}.jsonl") for split in splits}},
        "test_split": "test",
        **config,
        "metadata": {"version": 1.0},
    }
    # Every JSON text is YAML, and needs no YAML library to be written and read.
    (work.product / f"{name}.yaml").write_text(json.dumps(data, indent=1) + "\n")


def _documents(task: GenerateTask | PerplexityTask, corpus: Path) -> dict[str, list[Document]]:
    """The documents a task reads: its items as `test`, its shots as `train`."""
    fields = ("question", "answer") if isinstance(task, GenerateTask) else ("text",)
    splits = {"test": _first(task, corpus, task.split, count=task.items, fields=fields)}
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


def _generate(task: GenerateTask) -> dict[str, Any]:
    """The form of the harness's GSM8K with greedy answers; the same shots before every question."""
    shots = {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n", "split": "train"}} if task.shots else {}
    return {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "answer",  # a field, not a template: the harness would evaluate a rendered "[...]" as Python
        "target_delimiter": " ",
        "num_fewshot": task.shots,
        **shots,
        "generation_kwargs": {"until": list(STOPS), "do_sample": False, "temperature": 0.0, "max_gen_toks": task.max_new_tokens},
        "metric_list": [EXACT_MATCH],
        "filter_list": [STRICT, FLEXIBLE],
    }


def _perplexity() -> dict[str, Any]:
    """Log-likelihood of whole documents. Bits per byte come first: they stay finite where a perplexity leaves the floats."""
    return {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "num_fewshot": 0,
        "metric_list": [{"metric": name, "higher_is_better": False, "aggregation": rule} for name, rule in PERPLEXITIES.items()],
    }


PERPLEXITIES = {"bits_per_byte": "bits_per_byte", "byte_perplexity": "weighted_perplexity", "word_perplexity": "weighted_perplexity"}
