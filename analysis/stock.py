"""How a point is scored without cpt_lab, for comparison: its weights written as a checkpoint, and the stock `lm_eval` command on it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpt_lab import study
from cpt_lab.evaluation.tasks import local_name
from cpt_lab.specs import Evaluation, Patched
from cpt_lab.store import Store

STUDY = "quickstart"
BATCH = 64
HARNESS_METRICS = {"exact_match_strict": "exact_match,strict-match", "bits_per_byte": "bits_per_byte,none"}


def edited_points(store: Store) -> list[Evaluation]:
    """The distinct edited points of the finished quickstart; SystemExit if it is not there."""
    if STUDY not in study.names(store):
        raise SystemExit(f"the bench needs a finished quickstart in {store.root}: make quickstart")
    specs = study.resolved(store, study.load(store, STUDY).points).values()
    edited = [spec for spec in specs if isinstance(spec, Evaluation) and isinstance(spec.checkpoint, Patched)]
    if not all(map(store.is_done, edited)):
        raise SystemExit(f"the quickstart in {store.root} is not finished: make quickstart")
    return list(dict.fromkeys(edited))


def command(point: Evaluation, *, checkpoint: Path, protocol: Path, out: Path) -> list[str]:
    """The harness's own command line for the tasks of a point, on the CPU."""
    chosen = {
        "--model": "hf",
        "--model_args": f"pretrained={checkpoint},dtype=float32",
        "--device": "cpu",
        "--batch_size": str(BATCH),
        "--tasks": ",".join(local_name(task) for task in point.protocol.tasks),
        "--include_path": str(protocol),
        "--output_path": str(out),
    }
    return [sys.executable, "-m", "lm_eval", "run", *(word for option in chosen.items() for word in option)]


def environment(folder: Path) -> dict[str, str]:
    """What it needs to find in the environment: one thread, no network, a cache of its own."""
    return {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}


def results(out: Path) -> dict[str, Any]:
    """What it wrote: {task: {metric: value}}."""
    (found,) = out.rglob("results_*.json")
    scores: dict[str, Any] = json.loads(found.read_text())["results"]
    return scores


def check_equal(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """SystemExit unless our metrics of a point are the harness's."""
    for name, metric in ours.items():
        task, _, short = name.partition("/")
        if short in HARNESS_METRICS:
            value = theirs[f"cpt_{task}"][HARNESS_METRICS[short]]
            if not math.isclose(value, metric["value"], rel_tol=1e-6):
                raise SystemExit(f"{name}: {metric['value']} by cpt_lab and {value} by lm_eval: they must be the same")
