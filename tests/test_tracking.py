"""Tracking without MLflow: settings, names, what a run would show, and what happens when nobody answers."""

from __future__ import annotations

import json
import posixpath
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import ValidationError

import made_up_study as made
from cpt_lab.store import State, Store
from cpt_lab.study import Study, Value, resolved, save
from cpt_lab.tracking import Synced, Tracking, initialise, log_figures, sync, ui_command
from cpt_lab.tracking_look import look
from cpt_lab.tracking_records import PARAM_LENGTH, Record, legal_name, series, store_id
from cpt_lab.tracking_runs import Runs, step

ROOT = Path(__file__).parent.parent


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_a_fresh_process(code: str) -> str:
    """What the code prints in an interpreter that has imported nothing yet."""
    search = [str(ROOT), str(ROOT / "tests")]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {search!r}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize("uri", ["sqlite:///relative.db", "mlruns", "http://host"])
def test_a_sqlite_uri_that_is_no_absolute_file_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(f"tracking.uri is '{uri}'")):
        Tracking(kind="sqlite", uri=uri)


@pytest.mark.parametrize("kind", ["sqlite", "server", "off"])
def test_every_tracking_file_is_a_valid_choice(kind: str) -> None:
    content = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "tracking" / f"{kind}.yaml"))
    assert isinstance(content, dict)
    given_uri = {"uri": "http://host:5000"} if kind == "server" else {}
    assert Tracking.model_validate({**content, **given_uri}).kind == kind


def test_a_server_without_an_address_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs http://HOST:PORT"):
        Tracking(kind="server")


def test_a_relative_artifact_folder_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs an absolute one"):
        Tracking(artifact_root="artifacts")


def test_what_is_left_open_lies_below_the_results_as_absolute_paths() -> None:
    settings = Tracking().within(Path("results"))
    assert settings.database == Path.cwd() / "results" / "mlflow" / "mlflow.db"
    assert settings.artifact_root == str(Path.cwd() / "results" / "mlflow" / "artifacts")
    assert settings.within(Path("elsewhere")) == settings


def test_the_interface_command_names_the_database(tmp_path: Path) -> None:
    assert ui_command(Tracking().within(tmp_path)).endswith(f" -m mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow/mlflow.db")
    assert ui_command(Tracking(kind="server", uri="http://host:5000")) == "http://host:5000"
    assert ui_command(Tracking(kind="off")) == ""


def test_tracking_that_is_off_leaves_no_trace(tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    settings = Tracking(kind="off")
    assert (initialise(settings), sync(store, study.name, settings)) == ("", Synced())
    log_figures(store, study.name, settings, [tmp_path / "missing.png"])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_a_server_that_is_away_is_one_sentence_with_the_way_back_and_needs_no_mlflow(tmp_path: Path) -> None:
    code = f"""
import made_up_study as made
from pathlib import Path
from cpt_lab.tracking import Tracking, TrackingUnavailable, sync
store, study = made.make(Path({str(tmp_path)!r}))
try:
    sync(store, study.name, Tracking(kind="server", uri="http://127.0.0.1:{closed_port()}"))
except TrackingUnavailable as error:
    print(isinstance(error, ValueError), error)
print("mlflow" in sys.modules, "torch" in sys.modules)
"""
    sentence, modules = in_a_fresh_process(code).splitlines()
    assert sentence.startswith("True MLflow cannot be written now (http://127.0.0.1:")
    assert "`python -m cpt_lab track sync made_up`" in sentence
    assert modules == "False False"


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["tiny_math/exact_match_strict", "system/cpu_utilization_percentage", "lr", "a b: c-d"])
def test_legal_names_stay_as_they_are(name: str) -> None:
    assert legal_name(name) == name


@pytest.mark.parametrize("name", ["pass@1,create_test", "a//b", "/a", "..", ".", "", "a/../..", "é", "x" * 300, "./a"])
def test_other_names_become_legal(name: str) -> None:
    assert_legal(legal_name(name))


@given(st.text(max_size=300))
def test_every_name_becomes_legal(name: str) -> None:
    assert_legal(legal_name(name))


@given(st.text(alphabet="a@,. ", max_size=6), st.text(alphabet="a@,. ", max_size=6))
def test_different_names_stay_different(first: str, second: str) -> None:
    assert (legal_name(first) == legal_name(second)) == (first == second)


def assert_legal(name: str) -> None:
    """MLflow's documented rule: its characters, a path that is its own normal form and stays inside, 250 characters."""
    assert re.fullmatch(r"[A-Za-z0-9_\-. :/]{1,250}", name)
    assert posixpath.normpath(name) == name
    assert not name.startswith(("/", ".."))
    assert name != "."


# -------------------------------------------------------------------------------------------------------------- records


def runs_of(store: Store, study: Study) -> Runs:
    save(store, study)
    return Runs(store, study, look(store, study.name))


def record_of(store: Store, study: Study, name: str) -> Record:
    return next(record for record in runs_of(store, study).everything() if record.name == name)


def test_a_study_shows_its_finished_points_curves_and_training_runs(tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    parent, *records = runs_of(store, study).everything()
    assert (parent.status, {record.tags["kind"] for record in records}) == ("SCHEDULED", {"training"})
    made.finish(store, study)
    parent, *records = runs_of(store, study).everything()
    assert parent.status == "FINISHED"
    assert Counter(record.tags["kind"] for record in records) == {"training": 2, "point": 20, "curve": 4}


def test_a_point_shows_what_varies_its_scores_and_how_it_was_made(tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    made.finish(store, study)
    record = record_of(store, study, "delta_norm-descending 0.25")
    assert record.params["fraction"] == "0.25"
    assert (record.params["model"], record.params["intervention"], record.params["protocol"]) == ("tiny", "rewind", "tiny")
    assert "seed" not in record.params
    assert {(item.name, item.step) for item in record.metrics} == {
        (made.ACCURACY, 250),
        (f"{made.ACCURACY}__stderr", 250),
        (made.BITS, 250),
    }
    named = {"study": "made_up", "kind": "point", "intervention": "rewind", "criterion": "delta_norm", "fraction": "0.25"}
    assert named.items() <= record.tags.items()
    assert (record.tags["curve"], record.tags["mlflow.source.git.commit"]) == ("delta_norm descending", "0123abc")
    assert record.tags["cpt.made.versions.torch"] == "2.0"
    assert set(record.files) == {"results.json"}
    assert json.loads(record.texts["config.json"]) == {"fraction": 0.25}


def test_a_point_of_no_curve_has_its_ranking_itself_and_is_found_by_what_the_study_does_not_vary(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.25,))
    single = study.points[0].model_copy(update={"varies": {"direction": "ascending"}})
    study = study.model_copy(update={"points": (single,)})
    made.finish(store, study.model_copy(update={"points": (made.point(made.rankings()[0], 0.25),)}))
    record = record_of(store, study, single.name)
    assert set(record.files) == {"results.json", "ranking.json", "scores.parquet"}
    assert (record.tags["criterion"], record.tags["fraction"], {item.step for item in record.metrics}) == ("delta_norm", "0.25", {0})
    assert "curve" not in record.tags


def test_a_curve_is_finished_with_its_last_point(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.25, 0.75))
    specs = resolved(store, study.points)
    made.score(store, specs["delta_norm-ascending 0.25"], 0.5)
    assert record_of(store, study, "delta_norm ascending").status == "SCHEDULED"
    made.score(store, specs["delta_norm-ascending 0.75"], 0.25)
    curve = record_of(store, study, "delta_norm ascending")
    assert curve.status == "FINISHED"
    assert [(item.step, item.value) for item in curve.metrics if item.name == made.ACCURACY] == [(250, 0.5), (750, 0.25)]


@pytest.mark.parametrize(
    ("varies", "place"), [({"fraction": 0.125}, 125), ({"percent": 30}, 300), ({"rank": 4}, 0), ({"fraction": None}, 0)]
)
def test_a_point_stands_in_thousandths_of_the_whole(tmp_path: Path, varies: dict[str, Value], place: int) -> None:
    _, study = made.make(tmp_path, fractions=(0.25,))
    assert step(study.points[0].model_copy(update={"varies": varies})) == place


def test_a_failed_point_says_why_and_marks_the_study(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.25,))
    made.fail(store, resolved(store, study.points)[study.points[0].name], "out of memory")
    runs = runs_of(store, study)
    record = record_of(store, study, study.points[0].name)
    assert (record.status, record.tags["cpt.message"], runs.look.pending) == ("FAILED", "out of memory", 3)
    made.finish(store, study)
    assert runs_of(store, study).parent([]).status == "FINISHED"


def test_a_running_point_is_pending_and_its_study_is_running(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.25,))
    store.mark(resolved(store, study.points)[study.points[0].name], State.QUEUED)
    runs = runs_of(store, study)
    assert (runs.parent([]).status, runs.look.pending) == ("RUNNING", 4)


def test_a_look_has_another_stamp_for_what_changed_alone(tmp_path: Path) -> None:
    store, study = made.make(tmp_path)
    before = look(store, study.name)
    made.score(store, resolved(store, study.points)[study.points[3].name], 0.5)
    after = look(store, study.name)
    assert [name.split()[1] for name, _ in after.stamps.items() - before.stamps.items()] == [study.points[3].name.split()[0]]
    assert after.stamp != before.stamp
    assert (look(store, study.name).stamps, look(store, study.name).stamp) == (after.stamps, after.stamp)


def test_a_parameter_over_mlflows_limit_becomes_an_artifact(tmp_path: Path) -> None:
    store, study = made.make(tmp_path, fractions=(0.25,))
    heads = "0.0," * 2400
    point = study.points[0].model_copy(update={"varies": {"heads": heads}})
    study = study.model_copy(update={"points": (point,)})
    made.finish(store, made.Study(name="all", points=(made.point(made.rankings()[0], 0.25),)))
    record = record_of(store, study, point.name)
    assert len(record.params["heads"]) <= PARAM_LENGTH
    assert record.texts["params/heads.txt"] == heads


def test_a_training_series_steps_in_tokens_and_drops_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 32, "loss": 2.5, "note": "x"}\n{"step": 2, "tok')
    record = Record("training x", "x", "FINISHED", 0.0, 7.0, series=path)
    assert [(item.name, item.value, item.step, item.time) for item in series(record)] == [("loss", 2.5, 32, 7.0)]


def test_a_store_keeps_its_name_and_two_stores_differ(tmp_path: Path) -> None:
    first, second = made.Store(tmp_path / "a"), made.Store(tmp_path / "b")
    assert store_id(first) == store_id(first) != store_id(second)
