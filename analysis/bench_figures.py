"""How loading a study and drawing it grow with its points: 100 to 10,000 made-up points of a rewind of OLMo 2 1B's shape.

`python -m analysis.bench_figures`; no model, no network. Every point has 200 documents. Loading is timed in a process of its own, from
the manifest to the table; the alternative is to read every results.json and samples.parquet with pandas, which any table must at least do.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cpt_lab.interventions.rewind import Rewind
from cpt_lab.specs import (
    BuiltinCorpus,
    Checkpoint,
    Evaluation,
    GenerateTask,
    HubCheckpoint,
    ModelShape,
    Patched,
    Protocol,
    Ranking,
    TopOf,
    key,
)
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, resolved, save

SIZES = (100, 1000, 5000, 10000)
FRACTIONS = 50
DOCUMENTS = 200
METRIC = "sums/exact_match_strict"
FIGURES = ("rewind_curve", "auc_diff", "head_map")
SHAPE = ModelShape(
    **{"name": "olmo2_1b", "family": "olmo2", "hidden_size": 2048, "num_layers": 16, "num_heads": 16, "num_kv_heads": 16},
    **{"head_dim": 128, "mlp_size": 8192, "vocab_size": 100352, "context": 4096},
)
CHILD = """
import json, sys, time
from pathlib import Path
from analysis import bench_figures
print(json.dumps(bench_figures.measured(Path(sys.argv[1]))))
"""


def main() -> None:
    """Print processor seconds by the number of points, and how they grow."""
    seconds: dict[int, dict[str, float]] = {}
    for count in SIZES:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), count)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([sys.executable, "-c", CHILD, name], check=True, capture_output=True, text=True, env=environment)
            seconds[count] = json.loads(done.stdout.splitlines()[-1])
        found = dict(seconds[count])
        memory, plain = found.pop("memory"), found.pop("plain")
        said = ", ".join(f"{what} {took:.2f} s" for what, took in found.items())
        print(f"{count} points: {said}; pandas alone reads the files in {plain:.2f} s; {memory:.2f} GB", flush=True)
    first, last = SIZES[1], SIZES[-1]
    for what in ("table", *FIGURES):
        growth = seconds[last][what] / max(seconds[first][what], 1e-3)
        print(f"{what}: {growth:.1f} times the seconds for {last / first:.0f} times the points")


def measured(root: Path) -> dict[str, float]:
    """Processor seconds of each step, and gigabytes at most."""
    from analysis import figures
    from analysis.results import Results
    from cpt_lab import study

    store, found = Store(root), {}
    began = time.process_time()
    results = Results(store, [study.load(store, "bench")])
    found["manifest"] = time.process_time() - began
    for name in ("table", *FIGURES):
        began = time.process_time()
        _ = results.points if name == "table" else figures.build(name, results)
        found[name] = time.process_time() - began
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    found["plain"] = _plain(store)
    return found


def make(root: Path, count: int) -> None:
    """A store in which a study of about so many points is finished: `FRACTIONS` fractions of as many random orders as it takes."""
    store = Store(root)
    base = HubCheckpoint(id="bench/base", revision="main", shape=SHAPE)
    tuned = HubCheckpoint(id="bench/tuned", revision="main", shape=SHAPE)
    points = tuple(_points(store, base, tuned, max(1, count // FRACTIONS)))
    asked = Study(name="bench", question="How long does it take?", points=points)
    save(store, asked)
    generator = np.random.default_rng(0)
    for place, spec in enumerate({key(spec): spec for spec in resolved(store, points).values()}.values()):
        _finish(store, spec, generator.random(DOCUMENTS) < 0.5 + 0.4 * np.sin(place))


def _points(store: Store, base: Checkpoint, tuned: Checkpoint, orders: int) -> Iterator[Point]:
    """Criteria both ways first, then random orders."""
    protocol = Protocol(
        name="bench",
        harness="0.4.13",
        tasks=(
            GenerateTask(
                name="sums", corpus=BuiltinCorpus(name="math", documents=100, held_out=DOCUMENTS), items=DOCUMENTS, max_new_tokens=8
            ),
        ),
    )
    for place in range(orders):
        ranking = _ranking(store, place)
        for fraction in np.linspace(0, 1, FRACTIONS):
            change = Rewind(base=base, select=TopOf(ranking=ranking, fraction=float(fraction)))
            spec = Evaluation(checkpoint=Patched(tuned=tuned, interventions=(change,)), protocol=protocol)
            varies = {"criterion": ranking.criterion, "direction": ranking.direction, "fraction": float(fraction), "seed": ranking.seed}
            yield Point(
                name=f"{ranking.label()} {fraction:.4f}", varies=varies, config={"intervention": {"fraction": float(fraction)}}, spec=spec
            )


def _ranking(store: Store, place: int) -> Ranking:
    ranking = Ranking(criterion="random", direction="ascending", shape=SHAPE, seed=place)
    shuffled = np.random.default_rng(place).permutation(len(ranking.units))
    folder = store.describe(ranking)
    (folder / "product").mkdir()
    order = [list(ranking.units[unit]) for unit in shuffled]
    (folder / "product" / "ranking.json").write_text(json.dumps({"criterion": "random", "direction": "ascending", "order": order}))
    layers, heads = zip(*ranking.units, strict=True)
    scores = pd.DataFrame({"layer": layers, "head": heads, "score": shuffled.astype(float)})
    scores.to_parquet(folder / "product" / "scores.parquet", index=False)
    (folder / "DONE").touch()
    return ranking


def _finish(store: Store, spec: object, right: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    assert isinstance(spec, Evaluation)
    product = store.folder(spec) / "product"
    product.mkdir(parents=True)
    samples = pd.DataFrame({"task": "sums", "document": range(DOCUMENTS), "answer": "1 + 1 = 2", "exact_match_strict": right.astype(float)})
    samples.to_parquet(product / "samples.parquet", index=False)
    error = float(right.std(ddof=1) / np.sqrt(DOCUMENTS))
    metric = {"value": float(right.mean()), "stderr": error, "n": DOCUMENTS, "higher_is_better": True}
    (product / "results.json").write_text(json.dumps({"primary": METRIC, "metrics": {METRIC: metric}, "warnings": [], "seconds": 1.0}))
    (product.parent / "status.json").write_text(json.dumps({"state": "done"}))
    (product.parent / "DONE").touch()


def _plain(store: Store) -> float:
    """Processor seconds to read every result and its documents, and nothing else."""
    began = time.process_time()
    for folder in (store.root / "evaluations").iterdir():
        json.loads((folder / "product" / "results.json").read_text())
        pd.read_parquet(folder / "product" / "samples.parquet", columns=["task", "document", "exact_match_strict"])
    return time.process_time() - began


if __name__ == "__main__":
    main()
