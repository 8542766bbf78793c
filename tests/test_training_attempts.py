"""One run in several attempts: its seconds, its metrics and its run in MLflow are those of all of them, and no signal is lost."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import toys
from cpt_lab import launch, rates, tracking
from cpt_lab.launch import Launch
from cpt_lab.specs import Mixture, Part, TrainedCheckpoint, key
from cpt_lab.store import State, Store, read_json
from cpt_lab.tracking_settings import Tracking
from cpt_lab.training import checks
from cpt_lab.training.callbacks import Recorder
from processes import PATIENCE
from training_cases import CORPUS, OLD_IMPORTS, ON_CPU, RECIPE, SPEC, Made, metrics, workspace

BATCH = RECIPE.batch_tokens
ALWAYS = ON_CPU.model_copy(update={"checkpoint_minutes": 1e-9})
pytestmark = OLD_IMPORTS


class Told(BaseException):
    """What a worker's handler raises."""


def dies_after(made: Made, folder: Path, steps: int) -> Path:
    """The file of the last state of a run that died after so many steps."""

    def die(done: float) -> None:
        if done == steps * BATCH:
            raise MemoryError

    work = workspace(folder)
    work.listener = die
    with pytest.raises(MemoryError):
        made.train(work, how=ALWAYS)
    return work.scratch / "states" / f"step{steps}" / "train" / "rank0.pt"


def test_the_seconds_of_an_attempt_are_added_to_those_that_its_state_has() -> None:
    now = iter([100.0, 107.0, 500.0, 503.0])

    def recorder() -> Recorder:
        return Recorder(path=Path(), steps=1, report=lambda *_: None, blame=lambda *_: "", clock=lambda: next(now))

    first = recorder().state_dict()
    assert first == {"seconds": 7.0}
    second = recorder()
    second.load_state_dict(first)
    assert second.seconds == 10.0


def test_the_seconds_of_an_interrupted_run_are_those_of_all_its_attempts(tmp_path: Path, made: Made) -> None:
    state = dies_after(made, tmp_path, 12)
    kept = torch.load(state, weights_only=False)
    assert kept["callbacks"]["recorder"]["seconds"] > 0
    kept["callbacks"]["recorder"]["seconds"] += 1000
    torch.save(kept, state)
    work = workspace(tmp_path)
    facts = json.loads((made.train(work) / "training.json").read_text())
    assert facts["seconds"] > 1000
    assert facts["tokens_per_second"] == facts["tokens"] / facts["seconds"]
    assert work.seconds == facts["seconds"]


def test_a_signal_reaches_the_worker_even_if_the_state_cannot_be_saved(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_told(*_: object) -> None:
        raise Told

    free = iter([10**12])
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free, 0)))
    before, work = signal.signal(signal.SIGUSR2, raise_told), workspace(tmp_path)
    work.listener = lambda done: signal.raise_signal(signal.SIGUSR2) if done == 6 * BATCH else None
    try:
        with pytest.raises(Told) as raised:
            made.train(work)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert isinstance(raised.value.__context__, OSError)


# -------------------------------------------------------------------------------------------------------- a killed worker

STEPS, GOES_ON_AFTER, KILLED_AFTER, HOUR = 40, 20, 23, 3600.0
LONG = SPEC.but(mixture=Mixture(name="long", parts=(Part(corpus=CORPUS, tokens=STEPS * BATCH, oversample=True),)))
KILL = f"""
import os, signal
from cpt_lab.store import Workspace
progress = Workspace.progress
def deadly(work, done, total, unit):
    progress(work, done, total, unit)
    if unit == "tokens" and done == {KILLED_AFTER * BATCH}:
        os.kill(os.getpid(), signal.SIGKILL)
Workspace.progress = deadly
"""


def code_of_worker(told: Launch, customized: Path | None = None) -> int:
    """The exit code of a worker of a launch, in whose process such a sitecustomize.py runs first."""
    place = launch.environment(told)
    place["PYTHONPATH"] += f":{customized}" if customized else ""
    command = [sys.executable, "-m", "cpt_lab.worker", str(told.folder)]
    return subprocess.run(command, cwd=told.folder / "code", env=place, capture_output=True, check=False, timeout=PATIENCE).returncode


def losses(settings: Tracking, spec: TrainedCheckpoint) -> list[tuple[int, float]]:
    """(tokens, loss) of every value that MLflow has of the one finished run of a training, by its own tables."""
    database = sqlite3.connect(settings.database)
    try:
        found = database.execute(
            "select run_uuid, status from runs join tags using (run_uuid) where key = 'cpt.run' and value = ?", (f"training {key(spec)}",)
        )
        ((run, status),) = found.fetchall()
        assert status == "FINISHED"
        return database.execute("select step, value from metrics where run_uuid = ? and key = 'loss' order by step", (run,)).fetchall()
    finally:
        database.close()


@dataclass(frozen=True)
class Resumed:
    """The store of a study whose training was killed and resumed, and the lines of metrics that the killed worker left."""

    store: Store
    early: list[dict[str, float]]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """Its last states were lost with the worker, and the one before says that it took HOUR seconds more; MLflow was synced meanwhile."""
    folder = tmp_path_factory.mktemp("resumed")
    store, settings = Store(folder / "results"), Tracking()
    told = toys.prepared(store, toys.planned(store, [LONG], packs=1), how=ALWAYS.model_copy(update={"keep_states": 5}), tracking=settings)
    (folder / "kill").mkdir()
    (folder / "kill" / "sitecustomize.py").write_text(KILL)
    assert code_of_worker(told, folder / "kill") == -signal.SIGKILL
    assert store.status(LONG).state is State.LOST
    tracking.sync(store, "toys", settings)
    scratch = store.folder(LONG) / "scratch"
    for lost in range(GOES_ON_AFTER + 1, KILLED_AFTER + 1):
        shutil.rmtree(scratch / "states" / f"step{lost}")
    state = scratch / "states" / f"step{GOES_ON_AFTER}" / "train" / "rank0.pt"
    kept = torch.load(state, weights_only=False)
    kept["callbacks"]["recorder"]["seconds"] += HOUR
    torch.save(kept, state)
    early = [json.loads(line) for line in (scratch / "metrics.jsonl").read_text().splitlines()]
    assert code_of_worker(told) == 0
    return Resumed(store, early)


@pytest.mark.slow
def test_a_training_whose_worker_was_killed_is_one_finished_run_in_mlflow_with_each_step_once(resumed: Resumed) -> None:
    settings = Tracking()
    for _ in range(2):
        tracking.sync(resumed.store, "toys", settings)
    kept = losses(settings.within(resumed.store.root), LONG)
    assert kept == [(line["tokens"], line["loss"]) for line in metrics(resumed.store.product(LONG))]
    assert [tokens for tokens, _ in kept] == [step * BATCH for step in range(1, STEPS + 1)]
    assert GOES_ON_AFTER < len(resumed.early) <= KILLED_AFTER
    assert kept[: len(resumed.early)] == [(line["tokens"], line["loss"]) for line in resumed.early]


@pytest.mark.slow
def test_all_that_a_killed_and_resumed_training_took_counts_for_the_rate_of_its_like(resumed: Resumed) -> None:
    seconds = read_json(resumed.store.product(LONG) / "training.json")["seconds"]
    assert seconds > HOUR
    assert resumed.store.provenance(LONG)["seconds"] == pytest.approx(seconds, abs=1e-3)
    assert rates.known(resumed.store, "cpu").seconds(LONG) == resumed.store.provenance(LONG)["seconds"]
