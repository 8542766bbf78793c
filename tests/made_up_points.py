"""A finished store of unedited, truncated, merged and transplanted models without a model: real specs, made-up outcomes per document."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import made_up_study as made
from cpt_lab.interventions.members import Member
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.interventions.soup import Soup
from cpt_lab.interventions.transplant import Transplant
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.specs import (
    BuiltinCorpus,
    Checkpoint,
    Evaluation,
    GenerateTask,
    Heads,
    Intervention,
    Mean,
    Mixture,
    Part,
    Patched,
    PerplexityTask,
    Protocol,
    TrainedCheckpoint,
)
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved

SUMS, ADDING, PROSE = "sums/exact_match_strict", "adding/exact_match_strict", "prose/bits_per_byte"
DOCUMENTS, TEXTS = 60, 10
LANGUAGE = "language/accuracy"
PROTOCOL = Protocol(
    name="made_up",
    harness="0.4.13",
    tasks=(
        GenerateTask(name="sums", corpus=made.MATH, items=DOCUMENTS, max_new_tokens=8),
        GenerateTask(name="adding", corpus=made.MATH, items=DOCUMENTS, max_new_tokens=8),
        PerplexityTask(name="prose", corpus=made.TEXT, items=TEXTS),
    ),
    means=(Mean(name="language", metric="accuracy", of=(SUMS, ADDING)),),
)
ALL_ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def mixture(name: str, **tokens: int) -> Mixture:
    parts = (Part(corpus=BuiltinCorpus(name=corpus, documents=100, held_out=20), tokens=count) for corpus, count in tokens.items())  # type: ignore[arg-type]
    return Mixture(name=name, parts=tuple(parts))


def pretrained(tokens: int = 320) -> TrainedCheckpoint:
    return made.BASE.but(mixture=mixture("pre", text=tokens))


def tuned(base: Checkpoint | None = None, name: str = "math_320", **tokens: int) -> TrainedCheckpoint:
    return made.BASE.but(start=base or pretrained(), mixture=mixture(name, **(tokens or {"math": 320})))


def evaluation(checkpoint: Checkpoint, *changes: Intervention, protocol: Protocol = PROTOCOL) -> Evaluation:
    return Evaluation(checkpoint=Patched(tuned=checkpoint, interventions=changes) if changes else checkpoint, protocol=protocol)


def truncated(checkpoint: TrainedCheckpoint, percent: int) -> Evaluation:
    assert checkpoint.start is not None
    return evaluation(checkpoint, Truncate(base=checkpoint.start, percent=percent, roles=ALL_ROLES))  # type: ignore[arg-type]


def soup(checkpoint: Checkpoint, other: Checkpoint, weight: float) -> Evaluation:
    members = (Member(name="tuned", weight=1 - weight), Member(name="other", checkpoint=other, weight=weight))
    return evaluation(checkpoint, Soup(members=members))


def transplanted(checkpoint: TrainedCheckpoint) -> Evaluation:
    assert checkpoint.start is not None
    return evaluation(checkpoint, Transplant(name="base", source=checkpoint.start, roles=ALL_ROLES))  # type: ignore[arg-type]


def rewound_alone(checkpoint: TrainedCheckpoint, head: tuple[int, int]) -> Evaluation:
    assert checkpoint.start is not None
    return evaluation(checkpoint, Rewind(base=checkpoint.start, select=Heads(heads=(head,))))


def study(specs: Iterable[Evaluation], name: str = "made_up") -> Study:
    points = tuple(Point(name=f"point {place}", varies={"place": place}, config={}, spec=spec) for place, spec in enumerate(specs))
    return Study(name=name, points=points)


def finished(root: Path, asked: Study, leave_out: Iterable[str] = ()) -> Store:
    """A store in which every point of the study is finished but those left out."""
    store = Store(root)
    for name, spec in resolved(store, asked.points).items():
        if name not in leave_out and not store.is_done(spec):
            score(store, spec)
    return store


def outcomes(spec: Any) -> pd.DataFrame:
    """What every document gave: the same for the same spec, different for different ones."""
    generator = np.random.default_rng(zlib.crc32(spec.model_dump_json().encode()))
    right = {task: (generator.random(DOCUMENTS) < generator.uniform(0.2, 0.9)).astype(float) for task in ("sums", "adding")}
    answers = [pd.DataFrame({"task": task, "document": range(DOCUMENTS), "exact_match_strict": found}) for task, found in right.items()]
    texts = pd.DataFrame({"task": "prose", "document": range(TEXTS), "bits_per_byte": generator.uniform(2, 3, TEXTS)})
    return pd.concat([*answers, texts], ignore_index=True)


def score(store: Store, spec: Any) -> None:
    table = outcomes(spec)
    metrics = {}
    for name, up in ((SUMS, True), (ADDING, True), (PROSE, False)):
        values = of(table, name)
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        metrics[name] = {"value": float(values.mean()), "stderr": error, "n": len(values), "higher_is_better": up}
    both = [metrics[SUMS], metrics[ADDING]]
    metrics[LANGUAGE] = {
        "value": float(np.mean([float(each["value"]) for each in both])),
        "stderr": float(np.sqrt(sum(float(each["stderr"]) ** 2 for each in both)) / 2),
        "n": 2 * DOCUMENTS,
        "higher_is_better": True,
    }
    made.build(store, spec, {"results.json": {"primary": SUMS, "metrics": metrics, "warnings": [], "seconds": 1.0}}, table=table)


def of(table: pd.DataFrame, metric: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The documents' own values of a metric."""
    task, _, column = metric.partition("/")
    return table.loc[table["task"] == task, column].to_numpy(np.float64)


def paired_error(ours: Any, theirs: Any, metric: str) -> float:
    """By hand: the standard error of the mean difference."""
    difference = of(outcomes(ours), metric) - of(outcomes(theirs), metric)
    return float(np.sqrt(np.sum((difference - difference.mean()) ** 2) / (len(difference) - 1) / len(difference)))
