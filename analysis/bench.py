"""`make bench`: points of the finished quickstart scored warm, and as one would without cpt_lab, in turn, in one run.

Without: the edited weights are written as a checkpoint folder and the stock `lm_eval` command scores it, one process per point.
Both must give the same numbers, or the bench fails. Ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from analysis import (
    bench_checkpoints,
    bench_data,
    bench_evaluation,
    bench_figures,
    bench_interventions,
    bench_launch,
    bench_slurm,
    bench_spectra,
    bench_training,
    bench_worker,
    stock,
)
from cpt_lab.build import Workshop, ensure
from cpt_lab.evaluation.warm import WarmEvaluator
from cpt_lab.execution import Execution
from cpt_lab.specs import Evaluation, Patched
from cpt_lab.store import Store, Workspace

POINTS = 5


def main() -> None:
    """Print seconds per point both ways and their ratio."""
    store = Store(Path(os.environ.get("CPT_LAB_RESULTS", "results")))
    points = stock.edited_points(store)[:POINTS]
    how = Execution(threads=1, device="cpu")
    workshop, evaluator = Workshop(store, how), WarmEvaluator(how)
    warm, plain = [], []
    with tempfile.TemporaryDirectory() as name:
        for index, point in enumerate(points):
            folder = Path(name) / str(index)
            seconds, metrics = _timed_warm(evaluator, point, folder, workshop)
            warm.append(seconds)
            seconds, theirs = _timed_stock(point, folder, workshop)
            plain.append(seconds)
            stock.check_equal(metrics, theirs)
            print(f"point {index + 1}: warm {warm[-1]:.2f} s, written out and scored by lm_eval {plain[-1]:.1f} s, same scores", flush=True)
    ratio = statistics.median(slow / fast for slow, fast in zip(plain[1:], warm[1:], strict=True))
    print(f"median ratio after the first point (which loads the model): {ratio:.1f}x less time per point, one thread each")
    bench_evaluation.main()
    bench_interventions.main()
    bench_checkpoints.main()
    bench_data.main()
    bench_spectra.main()
    bench_training.main()
    bench_worker.main()
    bench_launch.main()
    bench_figures.main()
    bench_slurm.main()


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
    saved = folder / "checkpoint"
    saved.mkdir()
    command = stock.command(point, checkpoint=saved, protocol=product, out=folder / "out")
    started = time.perf_counter()
    checkpoints.materialize(point.checkpoint, Workspace(folder, saved), tuned=workshop.product(point.loaded), sources=sources)
    done = subprocess.run(command, env={**os.environ, **stock.environment(folder)}, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"lm_eval failed:\n{done.stderr[-2000:]}")
    return seconds, stock.results(folder / "out")


if __name__ == "__main__":
    main()
