"""The quickstart's whole way with small budgets, by the command line: from raw text to MLflow, figure and comparison, and once more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cpt_lab import study
from cpt_lab.specs import TrainedCheckpoint, closure
from cpt_lab.store import State, Store
from small_quickstart import SMALL, cpt_lab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::Warning:mlflow.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    said = cpt_lab(folder, *SMALL)
    assert "6 points, 0 done" in said
    assert "6 of 6 points done" in said
    assert "mlflow ui" in said
    return folder


def test_points_that_share_weights_are_scored_once_and_all_points_are_done(results: Path) -> None:
    store = Store(results)
    specs = study.resolved(store, study.load(store, "quickstart").points)
    assert all(store.status(spec).state is State.DONE for spec in specs.values())
    assert len(specs) == 6  # two directions of three fractions
    assert len(list((results / "evaluations").glob("*/DONE"))) == 4  # both ends are shared


def test_every_point_every_curve_and_every_training_is_one_run_below_the_run_of_the_study(results: Path) -> None:
    import mlflow

    asked = study.load(Store(results), "quickstart")
    client = mlflow.MlflowClient(asked.tracking.address)
    experiment = client.get_experiment_by_name("cpt_lab")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    trainings = [spec for spec in closure([point.spec for point in asked.points]) if isinstance(spec, TrainedCheckpoint)]
    curves = [run for run in children.values() if run.data.tags["kind"] == "curve"]
    assert {run.info.run_name.split()[-1] for run in curves} == {"ascending", "descending"}
    assert len(children) == len(runs) - 1 == 6 + len(curves) + len(trainings) == 11
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    for point in asked.points:
        assert "sums/exact_match_strict" in children[point.name].data.metrics
    losses = [run for run in children.values() if "loss" in run.data.metrics]
    assert len(losses) == 3
    assert all("system/cpu_utilization_percentage" in run.data.metrics for run in losses)
    figures = {Path(item.path).suffix for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures >= {".png", ".html"}


def test_the_comparison_has_paired_errors(results: Path) -> None:
    said = cpt_lab(results, "compare", "quickstart", "ascending")
    assert "prose/bits_per_byte, difference to the first" in said
    block = said.split("prose/bits_per_byte, difference to the first")[1]
    assert block.count("±") == 2


def test_a_second_run_has_nothing_to_do_and_a_deleted_result_comes_back_alone(results: Path) -> None:
    assert "6 done, 0 to do" in cpt_lab(results, *SMALL)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("DONE")}
    deleted = min(path for path in before if path.parent.name.startswith("tiny-rewind-8heads"))
    shutil.rmtree(deleted.parent)
    assert "1 to do: 1 evaluate" in cpt_lab(results, *SMALL)
    after = {path: path.stat().st_mtime_ns for path in results.rglob("DONE")}
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} == {deleted}
