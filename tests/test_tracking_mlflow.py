"""Tracking with a real MLflow on SQLite: whatever is killed, lost, raced or repeated, every run is there once."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

import made_up_study as made
from cpt_lab import roster, tracking, tracking_client
from cpt_lab.store import State, Store
from cpt_lab.study import Study, resolved, save
from cpt_lab.tracking import Synced, Tracking, TrackingUnavailable, initialise, log_figures, reconcile, sync

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FRACTIONS = (0.0, 0.5)
RUNS = 4 * len(FRACTIONS) + 2  # points and training runs
CURVES = ("delta_norm ascending", "delta_norm descending", "random ascending seed 0", "random ascending seed 1")
ALL = RUNS + len(CURVES) + 1  # with the study's own


@pytest.fixture(scope="session")
def ready_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One initialised database for all tests: making one takes seconds."""
    folder = tmp_path_factory.mktemp("database")
    initialise(Tracking(uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "artifacts")))
    return folder


@pytest.fixture
def made_up(tmp_path: Path, ready_database: Path) -> tuple[Store, Study, Tracking]:
    """A finished study, not yet in MLflow."""
    store, study = made.make(tmp_path / "results", fractions=FRACTIONS)
    made.finish(store, study)
    settings = Tracking().within(store.root)
    settings.database.parent.mkdir(parents=True)
    for name in ("mlflow.db", "mlflow.db.ready.json"):
        shutil.copyfile(ready_database / name, settings.database.with_name(name))
    return store, study, settings


def query(settings: Tracking, text: str) -> list[tuple[object, ...]]:
    """Rows of MLflow's own tables: an independent look at what was written."""
    database = sqlite3.connect(settings.database)
    try:
        return database.execute(text).fetchall()
    finally:
        database.close()


def statuses(settings: Tracking) -> dict[str, str]:
    rows = query(settings, "select name, status from runs where experiment_id != 0")
    assert len(rows) == len(dict(rows)), "a name twice"  # type: ignore[arg-type]
    return {str(name): str(status) for name, status in rows}


def python(code: str) -> subprocess.Popen[str]:
    search = [str(ROOT), str(ROOT / "tests")]
    return subprocess.Popen([sys.executable, "-c", f"import sys; sys.path[:0] = {search!r}\n{code}"], text=True, cwd=ROOT)


def sync_in(store: Store, study: Study, before: str = "") -> str:
    """Code of a process that syncs."""
    return f"""
from pathlib import Path
from cpt_lab import roster, tracking, tracking_client
from cpt_lab.store import Store
store = Store(Path({str(store.root)!r}))
{before}
tracking.sync(store, {study.name!r}, tracking.Tracking())
"""


def test_every_point_and_training_run_is_one_child_of_the_study(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    assert sync(store, study.name, settings) == Synced(created=RUNS)
    assert statuses(settings) == dict.fromkeys(
        [*(point.name for point in study.points), *(run.label() for run in (made.BASE, made.TUNED)), *CURVES, study.name], "FINISHED"
    )
    (parent,) = query(settings, "select run_uuid from runs where name = 'made_up'")[0]
    children = query(settings, f"select count(*) from tags where key = 'mlflow.parentRunId' and value = '{parent}'")
    assert children == [(ALL - 1,)]
    assert query(settings, "select count(*) from runs where experiment_id = 0") == [(0,)]


def test_scores_stand_at_their_fraction_and_training_at_its_tokens(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    scores = f"select distinct m.step from metrics m join runs r using (run_uuid) where r.name like 'delta%' and m.key = '{made.ACCURACY}'"
    assert sorted(query(settings, scores)) == [(0,), (500,)]
    losses = f"select m.step, m.value from metrics m join runs r using (run_uuid) where r.name = '{made.TUNED.label()}' and m.key = 'loss'"
    assert sorted(query(settings, losses)) == [(32 * step, 5 / step) for step in range(1, 11)]


def artifacts(settings: Tracking, name: str) -> dict[str, Path]:
    """The files that MLflow has of a run."""
    (uri,) = query(settings, f"select artifact_uri from runs where name = '{name}'")[0]
    folder = Path(str(uri).removeprefix("file://"))
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def test_a_point_has_its_configuration_spec_and_results_and_its_curve_the_ranking(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    assert artifacts(settings, "delta_norm-ascending 0.5").keys() == {"config.json", "spec.json", "results.json"}
    assert artifacts(settings, "delta_norm ascending").keys() == {"ranking.json", "scores.parquet"}


def test_curves_of_a_study_that_are_compared_are_drawn_over_the_fraction(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    rows = "select r.name, m.step, m.value from metrics m join runs r using (run_uuid) where m.key = '{}' and r.name in {}"
    drawn = query(settings, rows.format(made.ACCURACY, CURVES))
    assert len(drawn) == 4 * len(FRACTIONS)
    assert sorted(drawn)[:2] == [("delta_norm ascending", 0, 0.9), ("delta_norm ascending", 500, 0.7)]
    parents = (
        f"select key, step, value from metrics join runs using (run_uuid) where name = '{study.name}' and key like '{made.ACCURACY}/%'"
    )
    named = [(f"{made.ACCURACY}/{name}", step, value) for name, step, value in sorted(drawn)]
    assert sorted(query(settings, parents)) == named


def test_the_studys_run_carries_its_plan_and_choices(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    header, *rows = artifacts(settings, study.name)["plan.csv"].read_text().splitlines()
    assert header == "point,criterion,direction,fraction,seed,folder"
    assert [row.split(",")[0] for row in rows] == [point.name for point in study.points]
    assert [row.split(",")[-1] for row in rows] == [entry.folder for entry in roster.read(store, study.name).entries]
    params = dict(query(settings, f"select key, value from params join runs using (run_uuid) where name = '{study.name}'"))  # type: ignore[arg-type]
    assert params["criterion"] == "delta_norm, random"
    assert (params["intervention"], params["fraction"]) == ("rewind", "0.0, 0.5")


def test_the_studys_run_follows_the_sweep_and_a_repeated_sync_adds_no_value(tmp_path: Path, made_up: tuple[Store, Study, Tracking]) -> None:
    _, _, settings = made_up
    store, study = made.make(tmp_path / "other", fractions=FRACTIONS)
    specs = [spec for name, spec in resolved(store, study.points).items() if name.endswith("0.5")]  # at 0 all are one
    sync(store, study.name, settings)
    made.fail(store, specs[0], "out of memory")
    sync(store, study.name, settings)
    made.score(store, specs[1], 0.5)
    for _ in range(2):
        (store.root / "studies" / study.name / "mlflow.json").unlink()
        sync(store, study.name, settings)
    values = "select value from metrics join runs using (run_uuid) where name = 'made_up' and key = '{}' order by timestamp"
    history = {name: [value for (value,) in query(settings, values.format(f"points/{name}"))] for name in ("done", "failed", "to do")}
    assert history == {"done": [0, 0, 1], "failed": [0, 1, 1], "to do": [8, 7, 6]}
    ((note,),) = query(settings, "select value from tags join runs using (run_uuid) where name = 'made_up' and key = 'mlflow.note.content'")
    assert "Does it work?" in str(note)
    assert "| done | 1 |" in str(note)
    assert "- failed: out of memory (1 points)" in str(note)


def test_runs_are_found_by_what_people_filter_for(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    wanted = "tags.study = 'made_up' and tags.kind = 'point' and tags.intervention = 'rewind' and tags.criterion = 'random'"
    with tracking_client.connected(settings) as client:
        experiment = client.get_experiment_by_name(settings.experiment).experiment_id
        found = client.search_runs([experiment], f"{wanted} and tags.direction = 'ascending' and tags.fraction = '0.5'")
        curves = client.search_runs([experiment], "tags.study = 'made_up' and tags.kind = 'curve'")
    assert {run.info.run_name for run in found} == {"random-ascending-seed0 0.5", "random-ascending-seed1 0.5"}
    assert {run.info.run_name for run in curves} == set(CURVES)


def test_a_second_sync_with_nothing_new_changes_nothing_and_needs_no_mlflow(
    made_up: tuple[Store, Study, Tracking], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    before = settings.database.read_bytes()
    monkeypatch.setattr(tracking_client, "connected", None)
    assert sync(store, study.name, settings) == Synced(unchanged=RUNS)
    assert settings.database.read_bytes() == before


def test_a_lost_cache_makes_no_duplicates_of_runs_or_values(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    values = query(settings, "select count(*) from metrics")
    (store.root / "studies" / study.name / "mlflow.json").unlink()
    assert sync(store, study.name, settings) == Synced(updated=RUNS)
    assert len(statuses(settings)) == ALL
    assert query(settings, "select count(*) from metrics") == values


def test_a_sync_killed_between_creating_and_remembering_leaves_no_duplicates(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    kill = """
import os, signal
write = tracking_client.write_run
def write_two(client, run, record, written=[]):
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(record)
    write(client, run, record)
tracking_client.write_run = write_two
"""
    assert python(sync_in(store, study, kill)).wait() == -9
    assert not (store.root / "studies" / study.name / "mlflow.json").exists()
    assert sorted(statuses(settings).values()) == ["FINISHED", "FINISHED", "RUNNING", "RUNNING"]
    assert sync(store, study.name, settings) == Synced(created=RUNS - 3, updated=3)
    assert set(statuses(settings).values()) == {"FINISHED"}
    assert len(statuses(settings)) == ALL


def test_two_processes_that_sync_at_once_make_no_duplicates(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    both = [python(sync_in(store, study)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(statuses(settings)) == ALL
    assert set(statuses(settings).values()) == {"FINISHED"}


def test_two_processes_may_initialise_one_new_database(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from cpt_lab.tracking import Tracking, initialise
initialise(Tracking().within(Path({str(tmp_path)!r})))
"""
    assert [process.wait() for process in [python(code) for _ in range(2)]] == [0, 0]
    settings = Tracking().within(tmp_path)
    assert query(settings, "select count(*) from experiments where name = 'cpt_lab'") == [(1,)]
    assert [path.name for path in settings.database.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failure_becomes_a_success_in_the_same_run(tmp_path: Path, made_up: tuple[Store, Study, Tracking]) -> None:
    _, _, settings = made_up
    store, study = made.make(tmp_path / "other", fractions=(0.5,))
    name = study.points[0].name
    made.fail(store, resolved(store, study.points)[name], "out of memory")
    sync(store, study.name, settings)
    failed = query(settings, f"select run_uuid, status from runs where name = '{name}'")
    message = f"select value from tags where run_uuid = '{failed[0][0]}' and key = 'cpt.message'"
    assert (failed[0][1], query(settings, message)) == ("FAILED", [("out of memory",)])
    made.finish(store, study)
    sync(store, study.name, settings)
    assert query(settings, f"select run_uuid, status from runs where name = '{name}'") == [(failed[0][0], "FINISHED")]
    assert query(settings, message) == [("",)]


def test_studies_of_one_name_in_two_stores_are_two_parents(tmp_path: Path, made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    other, same_name = made.make(tmp_path / "other", fractions=FRACTIONS)
    made.finish(other, same_name)
    assert sync(other, same_name.name, settings) == Synced(created=RUNS)
    assert query(settings, "select count(*) from runs where name = 'made_up'") == [(2,)]


def test_after_a_server_was_away_a_later_sync_completes_the_view(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    with pytest.raises(TrackingUnavailable, match="track sync made_up"):
        sync(store, study.name, Tracking(kind="server", uri="http://127.0.0.1:9"))
    assert sync(store, study.name, settings) == Synced(created=RUNS)


def test_mlflow_breaking_in_mid_sync_is_one_sentence_and_the_next_sync_completes(
    made_up: tuple[Store, Study, Tracking], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, study, settings = made_up
    with monkeypatch.context() as broken:
        broken.setattr(tracking_client, "write_run", disk_full)
        with pytest.raises(TrackingUnavailable, match="No space left"):
            sync(store, study.name, settings)
    assert sync(store, study.name, settings) == Synced(created=RUNS - 1, updated=1)


def disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_sync_leaves_no_connection_to_the_database_open(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    opened = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    assert str(settings.database) not in opened


def test_a_database_that_somebody_deleted_is_made_and_filled_again(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    settings.database.unlink()
    assert sync(store, study.name, settings) == Synced(created=RUNS)
    assert len(statuses(settings)) == ALL


def test_a_run_that_the_study_no_longer_has_is_marked_and_closed(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    dropped = study.points[0].name
    query_write(settings, f"update runs set status = 'RUNNING' where name = '{dropped}'")
    save(store, study.model_copy(update={"points": study.points[1:]}))
    sync(store, study.name, settings)
    assert statuses(settings)[dropped] == "KILLED"
    current = "select value from tags join runs using (run_uuid) where name = '{}' and key = 'cpt.current'"
    assert query(settings, current.format(dropped)) == [("false",)]
    save(store, study)
    sync(store, study.name, settings)
    assert (query(settings, current.format(dropped)), statuses(settings)[dropped]) == ([("true",)], "FINISHED")


def query_write(settings: Tracking, text: str) -> None:
    database = sqlite3.connect(settings.database)
    with database:
        database.execute(text)
    database.close()


def test_points_that_finish_later_join_the_same_study(tmp_path: Path, made_up: tuple[Store, Study, Tracking]) -> None:
    _, _, settings = made_up
    store, study = made.make(tmp_path / "other", fractions=FRACTIONS)
    assert sync(store, study.name, settings) == Synced(created=2, pending=8)
    assert statuses(settings)["made_up"] == "SCHEDULED"
    store.mark(resolved(store, study.points)[study.points[0].name], State.QUEUED)
    sync(store, study.name, settings)
    assert statuses(settings)["made_up"] == "RUNNING"
    made.finish(store, study)
    assert sync(store, study.name, settings) == Synced(created=8, unchanged=2)
    assert statuses(settings)["made_up"] == "FINISHED"


def test_figures_are_artifacts_of_the_study_and_logged_once(
    tmp_path: Path, made_up: tuple[Store, Study, Tracking], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    figure = tmp_path / "curve.png"
    figure.write_bytes(b"picture")
    log_figures(store, study.name, settings, [figure])
    (uri,) = query(settings, "select artifact_uri from runs where name = 'made_up'")[0]
    assert (Path(str(uri).removeprefix("file://")) / "figures" / "curve.png").read_bytes() == b"picture"
    monkeypatch.setattr(tracking.mlflow_side, "connected", None)
    log_figures(store, study.name, settings, [figure])
    assert sync(store, study.name, settings) == Synced(unchanged=RUNS)


def test_a_deleted_experiment_is_named_with_the_way_out(made_up: tuple[Store, Study, Tracking]) -> None:
    _, _, settings = made_up
    query_write(settings, "update experiments set lifecycle_stage = 'deleted' where name = 'cpt_lab'")
    settings.database.with_name("mlflow.db.ready.json").unlink()
    with pytest.raises(TrackingUnavailable, match=r"experiment 'cpt_lab' .* is deleted: restore it"):
        initialise(settings)


def test_mlflow_accepts_the_names_we_make() -> None:
    from mlflow.utils.validation import _validate_metric_name

    from cpt_lab.tracking_records import legal_name

    for name in ("pass@1,create_test", "a//b", "..", "", "é", "x" * 300, "tiny_math/exact_match_strict"):
        _validate_metric_name(legal_name(name))
    assert legal_name("tiny_math/exact_match_strict") == "tiny_math/exact_match_strict"


# -------------------------------------------------------------------------------------------------------------- reconciling


def test_runs_left_open_by_a_killed_job_are_closed_and_changed_ones_mended(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    wanted = statuses(settings)
    with tracking_client.connected(settings) as client:
        experiment = client.get_experiment_by_name(settings.experiment).experiment_id
        found = tracking_client.find_runs(client, experiment, {"cpt.study": study.name})
        point = next(run for identity, run in found.items() if identity.startswith("point"))
        client.update_run(point.info.run_id, status="RUNNING")
        client.set_tag(point.info.run_id, "cpt.state", "running")
        tags = {"cpt.store": tracking.store_id(store), "cpt.study": study.name, "cpt.run": "of a killed job"}
        client.create_run(experiment, tags=tags, run_name="zombie")
    assert sync(store, study.name, settings).updated == 0  # what was remembered hides it
    done = reconcile(store, study.name, settings)
    assert (done.runs, done.mended, done.closed) == (ALL, 1, 2)
    assert statuses(settings) == {**wanted, "zombie": "KILLED"}
    assert reconcile(store, study.name, settings) == tracking.Reconciled(ALL, 0, 0)


def delete(settings: Tracking, study: Study, begins: str) -> None:
    """Somebody deletes, in MLflow's UI, the study's first run whose identity begins so."""
    with tracking_client.connected(settings) as client:
        experiment = client.get_experiment_by_name(settings.experiment).experiment_id
        found = tracking_client.find_runs(client, experiment, {"cpt.study": study.name})
        client.delete_run(next(run for identity, run in found.items() if identity.startswith(begins)).info.run_id)


def parents(settings: Tracking) -> set[object]:
    """The runs that active runs hang below."""
    wanted = "select tags.value from tags join runs using (run_uuid) where tags.key = 'mlflow.parentRunId' and lifecycle_stage = 'active'"
    return {parent for (parent,) in query(settings, wanted)}


def parent(settings: Tracking) -> object:
    """The study's own run."""
    ((run,),) = query(
        settings,
        "select run_uuid from tags join runs using (run_uuid) where key = 'kind' and value = 'study' and lifecycle_stage = 'active'",
    )
    return run


def test_a_run_that_somebody_deleted_is_written_again(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    delete(settings, study, "point")
    assert reconcile(store, study.name, settings).mended == 1
    rows = query(settings, "select count(*) from runs where experiment_id != 0 and lifecycle_stage = 'active'")
    assert rows == [(ALL,)]


def test_a_figure_that_comes_after_the_studys_own_run_was_deleted_brings_the_children_back_at_the_next_sync(
    tmp_path: Path, made_up: tuple[Store, Study, Tracking]
) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    delete(settings, study, "study")
    figure = tmp_path / "curve.png"
    figure.write_bytes(b"picture")
    log_figures(store, study.name, settings, [figure])
    sync(store, study.name, settings)
    assert parents(settings) == {parent(settings)}


def test_the_studys_own_run_that_somebody_deleted_gets_its_plan_and_its_children_again(made_up: tuple[Store, Study, Tracking]) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    delete(settings, study, "study")
    assert reconcile(store, study.name, settings).mended == ALL
    assert parents(settings) == {parent(settings)}
    with tracking_client.connected(settings) as client:
        assert [file.path for file in client.list_artifacts(parent(settings))] == ["plan.csv"]
    assert reconcile(store, study.name, settings) == tracking.Reconciled(ALL, 0, 0)


def test_children_of_a_study_run_that_somebody_deleted_hang_below_the_new_one_after_the_next_sync(
    made_up: tuple[Store, Study, Tracking],
) -> None:
    store, study, settings = made_up
    sync(store, study.name, settings)
    before = parent(settings)
    assert parents(settings) == {before}
    delete(settings, study, "study")
    store.mark(next(iter(resolved(store, study.points).values())), State.FAILED, "too large")  # something new to write
    sync(store, study.name, settings)
    assert parents(settings) == {parent(settings)} != {before}
    rows = query(settings, "select count(*) from runs where experiment_id != 0 and lifecycle_stage = 'active'")
    assert rows == [(ALL,)]
