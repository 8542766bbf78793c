"""A study of thousands of points over a model of 1,024 heads: real specs, a real store and its own writer, made-up scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import made_up_study as made
from cpt_lab.interventions import Rewind
from cpt_lab.specs import Evaluation, Patched, Ranking, TopOf
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved, save
from cpt_lab.tracking_settings import Tracking

SHAPE = made.SHAPE.but(num_layers=32, num_heads=32, num_kv_heads=32)
BASE = made.BASE.but(shape=SHAPE)
TUNED = made.TUNED.but(shape=SHAPE, start=BASE)
FRACTIONS = 1000  # of each ranking, none of them 0 or 1: every point is a result of its own
ACCURACY = made.ACCURACY


def make(root: Path, count: int, *, tracking: Tracking | None = None) -> tuple[Store, Study]:
    """The study of so many points, a multiple of FRACTIONS, none of them done; its rankings are."""
    store = Store(root)
    rankings = [Ranking(criterion="random", direction="ascending", shape=SHAPE, seed=seed) for seed in range(count // FRACTIONS)]
    for ranking in rankings:
        heads = np.random.default_rng(ranking.seed).permutation(SHAPE.total_heads)
        made.build(store, ranking, {"ranking.json": {"order": [[int(head) // 32, int(head) % 32] for head in heads]}})
    for checkpoint in (BASE, TUNED):
        made.build(store, checkpoint, {"training.json": {"seconds": 2.0, "tokens": 320}})
    points = tuple(_point(ranking, index + 1) for ranking in rankings for index in range(FRACTIONS))
    study = Study(name="large", command="python -m cpt_lab +experiment=large", points=points, tracking=tracking or Tracking())
    save(store, study)
    return store, study


def finish(store: Store, study: Study, *, samples: int = 0) -> None:
    """A result for every point through the store's own writer; the samples of the first few alone."""
    metrics = {ACCURACY: {"value": 0.5, "stderr": 0.1, "n": made.DOCUMENTS, "higher_is_better": True}}
    results = {"results.json": {"primary": ACCURACY, "metrics": metrics, "warnings": [], "seconds": 1.5}}
    right, bits = np.ones(made.DOCUMENTS), np.linspace(2, 4, 10)
    for index, spec in enumerate(resolved(store, study.points).values()):
        made.build(store, spec, results, table=made.samples(right * (index % 2), bits) if index < samples else None)


def _point(ranking: Ranking, heads: int) -> Point:
    fraction = heads / SHAPE.total_heads
    change = Rewind(base=BASE, select=TopOf(ranking=ranking, fraction=fraction))
    varies = {"criterion": ranking.criterion, "fraction": fraction, "seed": ranking.seed}
    spec = Evaluation(checkpoint=Patched(tuned=TUNED, interventions=(change,)), protocol=made.PROTOCOL)
    return Point(name=f"random fraction={fraction!r} seed={ranking.seed}", varies=varies, config=CONFIG | {"fraction": fraction}, spec=spec)


CONFIG = {"model": SHAPE.model_dump(), "training": made.RECIPE.model_dump()}
