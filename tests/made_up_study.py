"""A finished study without a model: real specs and a real store, made-up products."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cpt_lab.interventions import Rewind
from cpt_lab.specs import (
    BpeTokenizer,
    BuiltinCorpus,
    Evaluation,
    GenerateTask,
    Mixture,
    ModelShape,
    Part,
    Patched,
    PerplexityTask,
    Protocol,
    Ranking,
    Recipe,
    Spec,
    TopOf,
    TrainedCheckpoint,
)
from cpt_lab.store import State, Store
from cpt_lab.study import Point, Study, resolved, save

MATH = BuiltinCorpus(name="math", documents=100, held_out=20)
TEXT = BuiltinCorpus(name="text", documents=100, held_out=20)
SHAPE = ModelShape(
    **{"name": "tiny", "family": "olmo2", "hidden_size": 8, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4},
    **{"head_dim": 2, "mlp_size": 16, "vocab_size": 300, "context": 64},
)
RECIPE = Recipe(sequence_length=16, batch_sequences=2, lr=1e-3, schedule="linear", lr_final_share=0.0)
TOKENIZER = BpeTokenizer(corpora=(MATH, TEXT), vocab_size=300)
PROTOCOL = Protocol(
    name="tiny",
    harness="0.4.13",
    tasks=(
        GenerateTask(name="tiny_math", corpus=MATH, items=20, max_new_tokens=8),
        PerplexityTask(name="tiny_text", corpus=TEXT, items=10),
    ),
)
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
ACCURACY, BITS = "tiny_math/exact_match_strict", "tiny_text/bits_per_byte"
DOCUMENTS = 20


def trained(corpus: BuiltinCorpus, start: TrainedCheckpoint | None = None) -> TrainedCheckpoint:
    mixture = Mixture(name=corpus.name, parts=(Part(corpus=corpus, tokens=320),))
    return TrainedCheckpoint(shape=SHAPE, start=start, tokenizer=TOKENIZER, mixture=mixture, recipe=RECIPE)


BASE = trained(TEXT)
TUNED = trained(MATH, BASE)


def ranking(criterion: str, direction: Any, seed: int | None = None) -> Ranking:
    return Ranking(criterion=criterion, direction=direction, shape=SHAPE, seed=seed)


def point(order: Ranking, fraction: float) -> Point:
    change = Rewind(base=BASE, select=TopOf(ranking=order, fraction=fraction))
    varies = {"criterion": order.criterion, "direction": order.direction, "fraction": fraction, "seed": order.seed}
    name = " ".join([order.label(), f"{fraction:g}"])
    return Point(name=name, varies=varies, config={"fraction": fraction}, spec=evaluation(change))


def evaluation(change: Rewind) -> Evaluation:
    return Evaluation(checkpoint=Patched(tuned=TUNED, interventions=(change,)), protocol=PROTOCOL)


def rankings() -> list[Ranking]:
    ranked = [ranking("delta_norm", "ascending"), ranking("delta_norm", "descending")]
    return [*ranked, *(ranking("random", "ascending", seed) for seed in range(2))]


def make(root: Path, name: str = "made_up", fractions: tuple[float, ...] = FRACTIONS) -> tuple[Store, Study]:
    """A store with the finished rankings and training runs of a study, and the study with no point finished."""
    store = Store(root)
    for index, order in enumerate(rankings()):
        heads = np.random.default_rng(index).permutation(SHAPE.total_heads)
        ranked(store, order, [(int(head) // 4, int(head) % 4) for head in heads])
    for checkpoint in (BASE, TUNED):
        lines = [{"step": step, "tokens": 32 * step, "loss": 5 / step, "system/cpu_utilization_percentage": 50.0} for step in range(1, 11)]
        build(store, checkpoint, {"training.json": {"seconds": 2.0, "tokens": 320}}, text={"metrics.jsonl": lines})
    study = Study(
        name=name, question="Does it work?", points=tuple(point(order, fraction) for order in rankings() for fraction in fractions)
    )
    save(store, study)
    return store, study


def ranked(store: Store, order: Ranking, units: list[tuple[int, Any]]) -> None:
    """A finished ranking with these units first to last; scores that fit the order."""
    content = {"criterion": order.criterion, "direction": order.direction, "order": [list(unit) for unit in units]}
    build(store, order, {"ranking.json": content})
    sign = 1 if order.direction == "ascending" else -1
    scores = pd.DataFrame(units, columns=["layer", "unit"]).assign(score=sign * np.arange(float(len(units))))
    scores.sort_values(["layer", "unit"]).to_parquet(store.product(order) / "scores.parquet", index=False)


def finish(store: Store, study: Study) -> None:
    """Finish every point with an accuracy that falls from 0.9 to 0.1 as the heads are rewound, faster when descending."""
    specs = resolved(store, study.points)
    for item in study.points:
        if not store.is_done(specs[item.name]):
            fraction = float(item.varies["fraction"] or 0)
            bend = {"ascending": 2.0, "descending": 0.5}[str(item.varies["direction"])]
            score(store, specs[item.name], 0.9 - 0.8 * fraction**bend)


def score(store: Store, spec: Spec, accuracy: float) -> None:
    """A finished evaluation: so many of the 20 answers right, each document with its own bits per byte."""
    right = np.arange(DOCUMENTS) < round(accuracy * DOCUMENTS)
    stderr = float(np.std(right, ddof=1) / np.sqrt(DOCUMENTS))
    metrics = {
        ACCURACY: {"value": float(right.mean()), "stderr": stderr, "n": DOCUMENTS, "higher_is_better": True},
        BITS: {"value": 3.0 - accuracy, "stderr": None, "n": 10, "higher_is_better": False},
    }
    build(
        store,
        spec,
        {"results.json": {"primary": ACCURACY, "metrics": metrics, "warnings": [], "seconds": 1.5}},
        table=samples(right.astype(float), np.linspace(2, 4, 10) - accuracy),
    )


def samples(right: np.ndarray[Any, Any], bits: np.ndarray[Any, Any]) -> pd.DataFrame:
    answers = pd.DataFrame({"task": "tiny_math", "document": range(len(right)), "exact_match_strict": right})
    texts = pd.DataFrame({"task": "tiny_text", "document": range(len(bits)), "bits_per_byte": bits})
    return pd.concat([answers, texts], ignore_index=True)


def fail(store: Store, spec: Spec, message: str) -> None:
    store.mark(spec, State.FAILED, message)


def build(
    store: Store,
    spec: Spec,
    objects: dict[str, Any],
    *,
    text: dict[str, list[Any]] | None = None,
    table: pd.DataFrame | None = None,
) -> None:
    """A product of JSON files, JSON lines and one table of samples."""
    lease = store.claim(spec)
    assert lease is not None
    with store.building(spec, lease) as work:
        for name, content in objects.items():
            (work.product / name).write_text(json.dumps(content))
        for name, lines in (text or {}).items():
            (work.product / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if table is not None:
            table.to_parquet(work.product / "samples.parquet")
    store.write_provenance(spec, {"git": "0123abc", "versions": {"torch": "2.0"}, "seconds": 1.5})
    lease.release()
