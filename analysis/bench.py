"""`make bench`: points of the finished quickstart scored warm, and as one would without cpt_lab, in turn, in one run.

Without: the edited weights are written as a checkpoint folder and the stock `lm_eval` command scores it, one process per point.
Both must give the same numbers, or the bench fails. Ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from analysis import (
    bench_checkpoints,
    bench_data,
    bench_evaluation,
    bench_interventions,
    bench_launch,
    bench_spectra,
    bench_training,
    bench_worker,
)
from cpt_lab import study
from cpt_lab.build import Workshop, ensure
from cpt_lab.evaluation.tasks import local_name
from cpt_lab.evaluation.warm import WarmEvaluator
from cpt_lab.execution import Execution
from cpt_lab.specs import Evaluation, Patched
from cpt_lab.store import Store, Workspace

POINTS = 5
STOCK_BATCH = 64
STUDY = "quickstart"
HARNESS_METRICS = {"exact_match_strict": "exact_match,strict-match", "bits_per_byte": "bits_per_byte,none"}


def main() -> None:
    """Print seconds per point both ways and their ratio."""
    store = Store(Path(os.environ.get("CPT_LAB_RESULTS", "results")))
    points = _points(store)
    how = Execution(threads=1, device="cpu")
    workshop, evaluator = Workshop(store, how), WarmEvaluator(how)
    warm, stock = [], []
    with tempfile.TemporaryDirectory() as name:
        for index, point in enumerate(points):
            folder = Path(name) / str(index)
            seconds, metrics = _timed_warm(evaluator, point, folder, workshop)
            warm.append(seconds)
            seconds, theirs = _timed_stock(point, folder, workshop)
            stock.append(seconds)
            _check_equal(metrics, theirs)
            print(f"point {index + 1}: warm {warm[-1]:.2f} s, written out and scored by lm_eval {stock[-1]:.1f} s, same scores", flush=True)
    ratio = statistics.median(slow / fast for slow, fast in zip(stock[1:], warm[1:], strict=True))
    print(f"median ratio after the first point (which loads the model): {ratio:.1f}x less time per point, one thread each")
    bench_evaluation.main()
    bench_interventions.main()
    bench_checkpoints.main()
    bench_data.main()
    bench_spectra.main()
    bench_training.main()
    bench_worker.main()
    bench_launch.main()


def _points(store: Store) -> list[Evaluation]:
    """Distinct edited points of the quickstart whose results are there."""
    specs = study.resolved(store, study.load(store, STUDY).points).values()
    edited = [spec for spec in specs if isinstance(spec, Evaluation) and isinstance(spec.checkpoint, Patched) and store.is_done(spec)]
    if len(edited) < POINTS:
        raise SystemExit(f"the bench needs a finished quickstart in {store.root}: make quickstart")
    return list(dict.fromkeys(edited))[:POINTS]


def _timed_warm(evaluator: WarmEvaluator, point: Evaluation, folder: Path, workshop: Workshop) -> tuple[float, dict[str, Any]]:
    (folder / "warm").mkdir(parents=True)
    started = time.perf_counter()
    evaluator.score(point, Workspace(folder, folder / "warm"), product=workshop.product)
    seconds = time.perf_counter() - started
    return seconds, json.loads((folder / "warm" / "results.json").read_text())["metrics"]


def _timed_stock(point: Evaluation, folder: Path, workshop: Workshop) -> tuple[float, dict[str, Any]]:
    from cpt_lab import checkpoints

    assert isinstance(point.checkpoint, Patched)
    product = workshop.product(point.protocol)
    sources = {name: ensure(workshop, source) for change in point.checkpoint.interventions for name, source in change.sources().items()}
    tasks = ",".join(local_name(task) for task in point.protocol.tasks)
    saved = folder / "checkpoint"
    saved.mkdir()
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={saved},dtype=float32"]
    command += [
        "--device",
        "cpu",
        "--batch_size",
        str(STOCK_BATCH),
        "--tasks",
        tasks,
        "--include_path",
        str(product),
        "--output_path",
        str(folder / "out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    started = time.perf_counter()
    checkpoints.materialize(point.checkpoint, Workspace(folder, saved), tuned=workshop.product(point.loaded), sources=sources)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"lm_eval failed:\n{done.stderr[-2000:]}")
    (results,) = (folder / "out").rglob("results_*.json")
    return seconds, json.loads(results.read_text())["results"]


def _check_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, metric in ours.items():
        task, _, short = name.partition("/")
        if short in HARNESS_METRICS:
            value = theirs[f"cpt_{task}"][HARNESS_METRICS[short]]
            if not math.isclose(value, metric["value"], rel_tol=1e-6):
                raise SystemExit(f"{name}: {metric['value']} warm and {value} by lm_eval: they must be the same")


if __name__ == "__main__":
    main()
