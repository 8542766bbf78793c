"""Scores of a model: metrics with standard errors, and what every document contributed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

if TYPE_CHECKING:
    import pandas

FILTERS = {"none": "", "strict-match": "_strict", "flexible-extract": "_flexible"}  # names of the harness -> endings of ours


class Metric(TypedDict):
    """One number: `stderr` is None where there is no closed form, as for a perplexity.

    `part` says which items were scored where not all were, `std` how the values of several answers to every prompt spread.
    """

    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    part: NotRequired[str]
    std: NotRequired[float]


class Answered(TypedDict):
    """How a task was answered, which may flip answers in low precision: the model side, why if it is not the one asked for, and batches.

    `plan` is the digest of all tokens that were read; empty, as `prefix` and `batches` are, where the harness's own model answered.
    """

    mode: str
    why: str
    plan: str
    prefix: list[int]
    batches: list[int]


@dataclass(frozen=True)
class Scores:
    """What a protocol says about one model.

    `metrics` by `<task>/<metric>`; `samples` one row per document: task, document, prompt_digest, answer (what the model wrote; None where
    it only read), tokens (of the answer, or of the text scored), and a column per metric with the document's own value; `warnings` where
    answers look broken; `primary` the name of the first task's first metric; `seconds` what the scoring took; `answered` how, by task.
    """

    metrics: dict[str, Metric]
    samples: pandas.DataFrame
    warnings: tuple[str, ...]
    primary: str
    seconds: float
    answered: dict[str, Answered] = field(default_factory=dict)


def metric_name(metric: str, filter_name: str) -> str:
    """`exact_match` filtered by `strict-match` -> `exact_match_strict`: a name that files and MLflow accept."""
    name = metric.replace("@", "_at_") + FILTERS.get(filter_name, f"_{filter_name}")
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def write_scores(scores: Scores, folder: Path) -> None:
    """Write results.json (all but the samples) and samples.parquet into a folder that is renamed when it is whole.

    A perplexity beyond the floats is `Infinity` in the file, which Python reads back.
    """
    results = {
        "primary": scores.primary,
        "metrics": scores.metrics,
        "warnings": list(scores.warnings),
        "seconds": scores.seconds,
        "answered": scores.answered,
    }
    scores.samples.to_parquet(folder / "samples.parquet", index=False)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
