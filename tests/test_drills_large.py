"""Ten thousand results in one study: every command that looks at them counts right and stays small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import drills
import large_study as large
from cpt_lab import study, tracking
from cpt_lab.store import Store
from cpt_lab.tracking_settings import Tracking
from processes import ROOT

pytestmark = pytest.mark.slow

POINTS = 10_000
TRACKED = 1_000  # MLflow itself takes its time for each
MOST_BYTES = 2e9
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""  # a process that is started counts the memory of the one that starts it, which must therefore be small
PLAN = """
import sys
from pathlib import Path
from cpt_lab import plan, study
from cpt_lab.store import Store
store = Store(Path(sys.argv[1]))
points = study.load(store, "large").points
made = plan.make(points, status=store.status, orders=study.orders(store, [point.spec for point in points]), workers=2)
print(made.counts(), len(made.stages()["evaluate"]))
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All points done but the last, and samples of the first two alone: who reads others fails."""
    made, asked = large.make(tmp_path_factory.mktemp("large"), POINTS, tracking=Tracking(kind="off"))
    large.finish(made, asked.model_copy(update={"points": asked.points[:-1]}), samples=2)
    return made


def said(*words: str, store: Store) -> str:
    """What a command prints; it has used less than MOST_BYTES."""
    return printed("-m", "cpt_lab", *words, f"results={store.root}")


def printed(*arguments: str) -> str:
    """What Python prints, given these; it has used less than MOST_BYTES."""
    command = [sys.executable, "-c", MEASURED, sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 10e6 < int(done.stderr.splitlines()[-1]) < MOST_BYTES
    return done.stdout


def test_status_counts_every_point_once(store: Store) -> None:
    assert said("status", "large", store=store).startswith(f"study large: {POINTS} points: {POINTS - 1} done, 1 planned\n")


def test_a_plan_has_the_one_point_that_is_left(store: Store) -> None:
    assert printed("-c", PLAN, str(store.root)) == f"{{'done': {POINTS - 1}, 'to do': 1}} 1\n"


def test_two_points_are_compared_without_reading_the_others(store: Store) -> None:
    first, second = study.load(store, "large").points[:2]
    shown = said("compare", "large", first.name, second.name, store=store)
    assert "+1.0000" in shown  # all answers of the second are right, none of the first's


def test_nothing_of_it_is_waste(store: Store) -> None:
    assert said("gc", store=store).startswith("gc: 0.000 GB can go")


def test_each_of_a_thousand_results_is_one_run_and_another_sync_writes_nothing(tmp_path: Path) -> None:
    store, asked = large.make(tmp_path, TRACKED)
    large.finish(store, asked)
    settings = Tracking().within(store.root)
    assert tracking.sync(store, asked.name, settings) == tracking.Synced(created=TRACKED + 2)
    names = [name for name, status in drills.runs(settings.address, store) if status == "FINISHED"]
    assert {point.name for point in asked.points} < set(names)
    assert len(names) == len(set(names)) == TRACKED + 4  # two training runs, one curve, the study
    assert drills.query(settings.address, "select count(*) from metrics where key like '%exact_match_strict'") == [(2 * TRACKED,)]
    before = settings.database.read_bytes()
    assert tracking.sync(store, asked.name, settings) == tracking.Synced(unchanged=TRACKED + 2)
    assert settings.database.read_bytes() == before
