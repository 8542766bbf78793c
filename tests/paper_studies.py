"""Made-up studies of the papers' own models: real specs and a real store, made-up outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import made_up_study as made
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.interventions.scale_transplant import ScaleTransplant
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.specs import (
    BuiltinCorpus,
    ChatTask,
    Evaluation,
    HubCheckpoint,
    Intervention,
    Mixture,
    ModelShape,
    OlmesTask,
    Part,
    Patched,
    Protocol,
    Ranking,
    Spec,
    TopOf,
    TrainedCheckpoint,
)
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved, save

MODELS = Path(__file__).parents[1] / "conf" / "model"
DOCUMENTS = 200
GSM8K = "gsm8k/exact_match"


def shape(name: str) -> ModelShape:
    """Of a model as conf/ has it."""
    return ModelShape(name=name, **yaml.safe_load((MODELS / f"{name}.yaml").read_text())["shape"])


OLMO_1B = shape("olmo2_1b")
BASE = HubCheckpoint(id="allenai/OLMo-2-0425-1B", revision="stage1-step1907359-tokens4001B", shape=OLMO_1B)
MATH = BuiltinCorpus(name="math", documents=100, held_out=20)
TUNED = TrainedCheckpoint(
    shape=OLMO_1B,
    start=BASE,
    tokenizer=made.TOKENIZER,
    mixture=Mixture(name="math_20b", parts=(Part(corpus=MATH, tokens=20_000_000_000),)),
    recipe=made.RECIPE,
)
OLMES = Protocol(name="gsm8k", harness="0.4.13", tasks=(OlmesTask(name="gsm8k"),))
CHAT = Protocol(name="post_training", harness="0.4.13", tasks=(ChatTask(name="gsm8k"),))


def evaluated(change: Intervention | None) -> Evaluation:
    return Evaluation(checkpoint=TUNED if change is None else Patched(tuned=TUNED, interventions=(change,)), protocol=OLMES)


def rewind(criterion: str, direction: Any, fraction: float) -> Point:
    order = Ranking(criterion=criterion, direction=direction, shape=OLMO_1B)
    varies = {"criterion": criterion, "direction": direction, "fraction": fraction}
    name = f"{criterion} {direction} fraction={fraction:g}"
    return Point(name=name, varies=varies, config={}, spec=evaluated(Rewind(base=BASE, select=TopOf(ranking=order, fraction=fraction))))


def truncated(percent: int) -> Point:
    return Point(
        name=f"percent={percent}",
        varies={"percent": percent},
        config={},
        spec=evaluated(Truncate(base=BASE, percent=percent, roles=("q",))),
    )


def post_trained(scaled: bool) -> Point:
    base = HubCheckpoint(id="Qwen/Qwen2.5-Math-1.5B", revision="main", shape=shape("qwen25_math_1_5b"))
    tuned = HubCheckpoint(id="Qwen/Qwen2.5-Math-1.5B-Instruct", revision="main", shape=shape("qwen25_math_1_5b_instruct"))
    change = ScaleTransplant(base=base, roles=("q",), alpha=(0.9,))
    checkpoint = Patched(tuned=tuned, interventions=(change,)) if scaled else tuned
    name = "scale_transplant" if scaled else "none"
    return Point(name=name, varies={"intervention": name}, config={}, spec=Evaluation(checkpoint=checkpoint, protocol=CHAT))


def finished(folder: Path, points: list[Point], right: dict[str, Any], name: str = "of_a_paper") -> tuple[Store, Study]:
    """A study with these outcomes of every document per point; ascending rankings are in the order of the units."""
    store, study = Store(folder), Study(name=name, points=tuple(points))
    for point in points:
        change = point.spec.checkpoint.interventions[0] if isinstance(getattr(point.spec, "checkpoint", None), Patched) else None
        for ranking in () if change is None else change.rankings():
            if not store.is_done(ranking):
                made.ranked(store, ranking, list(ranking.units)[:: 1 if ranking.direction == "ascending" else -1])
    save(store, study)
    for point, spec in zip(points, resolved(store, study.points).values(), strict=True):
        if not store.is_done(spec):
            score(store, spec, np.asarray(right[point.name], float))
    return store, study


def score(store: Store, spec: Spec, right: np.ndarray[Any, Any]) -> None:
    stderr = float(np.std(right, ddof=1) / np.sqrt(len(right)))
    metric = {"value": float(right.mean()), "stderr": stderr, "n": len(right), "higher_is_better": True}
    table = pd.DataFrame({"task": "gsm8k", "document": range(len(right)), "answer": "42", "tokens": 600, "exact_match": right})
    made.build(store, spec, {"results.json": {"primary": GSM8K, "metrics": {GSM8K: metric}, "warnings": [], "seconds": 1.0}}, table=table)
