"""A launch: what is written before any worker starts, and the code that the workers run from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import toys
from cpt_lab import launch, provenance, study
from cpt_lab.interventions import Rewind, Truncate
from cpt_lab.specs import Evaluation, Heads, Intervention, Patched, TopOf, key
from cpt_lab.store import State, Store
from cpt_lab.study import Point, Study
from spec_cases import BASE, DELTA_NORM, MATH, PROTOCOL, RANDOM, TEXT, TOKENS, TUNED, rewind_of, rewound

POINT = Evaluation(checkpoint=rewound(RANDOM), protocol=PROTOCOL)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_a_launch_is_read_back_as_it_was_written_with_every_key(root: Path) -> None:
    told = toys.told(root, [POINT, TOKENS])
    read = launch.load(told.folder)
    assert read == told
    assert [key(order.spec) for order in read.orders] == [key(order.spec) for order in told.orders]
    assert read.stages() == ("data", "cpt", "rank", "evaluate")
    assert read.packs == ((key(POINT),),)


def test_points_of_known_rankings_are_written_as_they_were_asked_for_and_read_with_their_heads(root: Path) -> None:
    build_ranking(Store(root))
    told = toys.told(root, [POINT])
    assert rewind_of(told.orders[-1].spec).select == Heads(heads=toys.ORDER[:2])
    written = json.loads((told.folder / "plan.json").read_text())["orders"][-1]["spec"]
    assert written["checkpoint"]["interventions"][0]["select"].keys() == {"kind", "ranking", "fraction"}
    read = launch.load(told.folder)
    assert read == told
    assert [key(order.spec) for order in read.orders] == [key(order.spec) for order in told.orders]


@pytest.mark.parametrize(
    "idle",
    [Truncate(base=BASE, percent=100, roles=("q", "k", "v", "o")), Rewind(base=BASE, select=TopOf(ranking=DELTA_NORM, fraction=1.0))],
    ids=["truncate", "rewind"],
)
def test_a_ranking_that_became_known_after_the_launch_leaves_its_points_as_they_were_planned(root: Path, idle: Intervention) -> None:
    """Also where one change of two is simpler at once than it was asked for."""
    (change,) = rewound(RANDOM).interventions
    chained = POINT.but(checkpoint=Patched(tuned=TUNED, interventions=(idle, change)))
    told = toys.told(root, [POINT, chained])
    build_ranking(Store(root))
    assert launch.load(told.folder) == told


def test_a_launch_whose_ranking_was_removed_says_so(root: Path) -> None:
    store = Store(root)
    build_ranking(store)
    told = toys.told(root, [POINT])
    shutil.rmtree(store.folder(RANDOM))
    with pytest.raises(ValueError, match="a ranking that it was planned with is gone, or another now; launch the study again"):
        launch.load(told.folder)


def test_what_waits_already_for_a_launch_of_the_study_is_not_queued_again(root: Path) -> None:
    first = toys.told(root, [MATH]).store()
    before = (first.folder(MATH) / "status.json").stat()
    second = toys.told(root, [MATH]).store()
    assert (second.folder(MATH) / "status.json").stat() == before
    assert second.status(MATH).state is State.QUEUED


def test_what_waits_for_a_launch_of_another_study_waits_for_the_newer_one(root: Path) -> None:
    Store(root, launch="another").queue(MATH)
    told = toys.told(root, [MATH])
    status = told.store().status(MATH)
    assert (status.state, status.launch) == (State.QUEUED, told.id)


def build_ranking(store: Store) -> None:
    lease = store.claim(RANDOM)
    assert lease is not None
    with store.building(RANDOM, lease) as work:
        (work.product / "ranking.json").write_text(json.dumps({"order": toys.ORDER}))
    lease.release()


def test_the_steps_of_a_launch_are_queued_but_not_those_that_run_or_wait_for_a_ranking(root: Path) -> None:
    store = Store(root, launch="another")
    lease = store.claim(TEXT)
    assert lease is not None
    store.mark(TEXT, State.RUNNING)
    told = toys.told(root, [POINT])
    queued = told.store()
    assert [queued.status(spec).state for spec in (TUNED, BASE, MATH, TEXT)] == [State.QUEUED, State.QUEUED, State.QUEUED, State.RUNNING]
    assert queued.status(TEXT).launch == "another"
    assert not queued.folder(POINT).exists()
    lease.release()


def test_what_was_finished_since_the_plan_was_made_is_not_queued(root: Path) -> None:
    store = Store(root, launch="another")
    planned = toys.planned(store, [MATH, TEXT])
    lease = store.claim(MATH)
    assert lease is not None
    with store.building(MATH, lease):
        pass
    lease.release()
    told = toys.prepared(store, planned)
    assert (told.store().status(MATH).attempts, told.store().status(MATH).launch) == (1, "another")
    assert told.store().status(TEXT).state is State.QUEUED


def test_a_new_launch_starts_to_count_attempts_again(root: Path) -> None:
    first = toys.told(root, [MATH]).store()
    first.mark(MATH, State.RUNNING)
    first.mark(MATH, State.FAILED, "no numbers")
    second = toys.told(root, [MATH]).store()
    status = second.status(MATH)
    assert (status.state, status.attempts, status.message) == (State.QUEUED, 0, "")


def test_workers_find_the_snapshots_code_first_and_compute_with_the_threads_of_the_launch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = toys.told(root, [MATH])
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    place = launch.environment(told)
    assert place["PYTHONPATH"].split(os.pathsep) == [str(told.folder / "code"), str(told.folder / "code" / "launchers"), "/elsewhere"]
    assert (place["OMP_NUM_THREADS"], place["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
    assert place["CPT_LAB_COMMAND"] == "python -m cpt_lab +experiment=toys"
    assert (told.folder / "code" / "cpt_lab" / "worker.py").exists()
    assert (told.folder / "code" / "conf" / "config.yaml").exists()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source that snapshots are taken of, one file."""
    folder = tmp_path / "checkout"
    (folder / "cpt_lab").mkdir(parents=True)
    (folder / "launchers").mkdir()
    (folder / "cpt_lab" / "one.py").write_text("1")
    monkeypatch.setattr(provenance, "source_root", lambda: folder)
    return folder


def test_the_same_code_is_kept_once_and_another_code_beside_it(root: Path, source: Path) -> None:
    first = provenance.snapshot(root)
    assert provenance.snapshot(root) == first
    (source / "cpt_lab" / "one.py").write_text("2")
    second = provenance.snapshot(root)
    assert {path.name for path in (root / "code").iterdir()} == {first.name, second.name}
    assert ((first / "cpt_lab" / "one.py").read_text(), (second / "cpt_lab" / "one.py").read_text()) == ("1", "2")


@pytest.mark.usefixtures("source")
def test_the_same_source_of_another_commit_is_kept_under_that_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {}
    for commit, difference in (("a1", ""), ("b2", ""), ("b2", "c3")):
        monkeypatch.setattr(provenance, "git_state", lambda state=(commit, difference): {"git": state[0], "git_diff": state[1]})
        kept[provenance.snapshot(root)] = (commit, difference)
        assert provenance.snapshot(root) in kept
    assert {(folder / "GIT").read_text(): (folder / "cpt_lab" / "one.py").read_text() for folder in kept} == {
        "a1\n\n": "1",
        "b2\n\n": "1",
        "b2\nc3\n": "1",
    }


# ------------------------------------------------------------------------------------------------------------------ study


def test_a_study_is_read_back_as_it_was_saved(root: Path) -> None:
    store = Store(root)
    point = Point(name="random 0.25", varies={"criterion": "random", "fraction": 0.25, "seed": None}, config={"a": 1}, spec=POINT)
    asked = Study(name="rewind_tiny", question="Which heads?", points=(point,))
    study.save(store, asked)
    read = study.load(store, "rewind_tiny")
    assert read == asked
    assert key(read.points[0].spec) == key(POINT)
    assert study.names(store) == ["rewind_tiny"]


def test_an_unknown_study_is_refused_with_those_there_are(root: Path) -> None:
    store = Store(root)
    with pytest.raises(KeyError, match="none yet"):
        study.load(store, "rewind")
    study.save(store, Study(name="truncate", points=()))
    with pytest.raises(KeyError, match="truncate"):
        study.load(store, "rewind")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "a b"])
def test_a_study_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        Study(name=name, points=())
