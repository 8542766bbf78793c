"""A real sweep on tiny models by real workers, one of which is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import toys
from cpt_lab import launch
from cpt_lab.interventions import Rewind
from cpt_lab.launch import Launch
from cpt_lab.specs import Evaluation, FolderCheckpoint, GenerateTask, Patched, PerplexityTask, Protocol, Ranking, TopOf, parse
from cpt_lab.store import State, Store, read_json
from cpt_lab.weights import weights_digest
from factory import tiny_checkpoint, tiny_shape
from processes import wait_for
from spec_cases import INST, MATH

FRACTIONS = (0.0, 0.125, 0.25, 0.5, 1.0)
SEEDS = (0, 1)
PROTOCOL = Protocol(
    name="tiny",
    tasks=(
        GenerateTask(name="sums", corpus=MATH, items=3, max_new_tokens=8),
        PerplexityTask(name="prose", corpus=INST, items=3),
    ),
    harness=version("lm_eval"),
)


def checkpoint(folder: Path, seed: int) -> FolderCheckpoint:
    tiny_checkpoint(folder, seed=seed, tokenizer=True)
    return FolderCheckpoint(path=str(folder), weights_digest=weights_digest(folder), shape=tiny_shape())


@pytest.fixture
def points(tmp_path: Path) -> list[Evaluation]:
    base, tuned = checkpoint(tmp_path / "base", 1), checkpoint(tmp_path / "tuned", 2)
    rankings = [Ranking(criterion="random", direction="ascending", shape=tuned.shape, seed=seed) for seed in SEEDS]
    changes = [Rewind(base=base, select=TopOf(ranking=ranking, fraction=share)) for ranking in rankings for share in FRACTIONS]
    return [Evaluation(checkpoint=Patched(tuned=tuned, interventions=(change,)), protocol=PROTOCOL) for change in changes]


def start(told: Launch, index: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cpt_lab.worker", str(told.folder), "--pack", str(index)]
    with (told.folder / "logs" / f"worker-{index}.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=told.folder / "code", env=launch.environment(told), stdout=log, stderr=log)


def running_by(root: Path, pid: int) -> list[Path]:
    """The evaluations that a process builds at the moment."""
    leases = root.glob("evaluations/*/lease.json")
    return [path.parent for path in leases if path.exists() and json.loads(path.read_text())["pid"] == pid]


def begun(root: Path, processes: list[subprocess.Popen[bytes]]) -> bool:
    return any(running_by(root, process.pid) for process in processes)


def ended(processes: list[subprocess.Popen[bytes]]) -> bool:
    return all(process.poll() is not None for process in processes)


def logs(told: Launch) -> str:
    return "\n".join(path.read_text()[-2000:] for path in (told.folder / "logs").iterdir())


@pytest.mark.slow
def test_a_sweep_survives_kill_9_of_a_worker_and_scores_every_distinct_model_once(tmp_path: Path, points: list[Evaluation]) -> None:
    root = tmp_path / "results"
    told = toys.told(root, points, packs=2)
    processes = [start(told, index) for index in range(2)]
    try:
        wait_for(lambda: begun(root, processes) or ended(processes), what="an evaluation", seconds=240)
        assert not ended(processes), logs(told)
        victim, other = sorted(processes, key=lambda process: not running_by(root, process.pid))
        victim.kill()
        assert victim.wait() == -signal.SIGKILL
        assert other.wait(timeout=240) == 0, logs(told)
    finally:
        for process in processes:
            process.kill()
            process.wait()

    store = Store(root)
    evaluations = sorted((root / "evaluations").iterdir())
    assert len(evaluations) == 2 + len(SEEDS) * (len(FRACTIONS) - 2)  # the curves share their ends
    assert {store.status(parse(read_json(folder / "spec.json"))).state for folder in evaluations} == {State.DONE}
    attempts = {path.parent: json.loads(path.read_text())["attempts"] for path in root.glob("*/*/status.json")}
    again = [folder for folder, count in attempts.items() if count != 1]
    assert len(again) <= 1
    assert all(attempts[folder] == 2 and folder.parent.name == "evaluations" for folder in again)
    assert all((folder / "product" / "results.json").exists() for folder in evaluations)
    assert not list(root.glob("*/*/.product-*"))
    assert not list(root.glob("*/*/lease.json"))
    assert toys.told(root, points).orders == ()
