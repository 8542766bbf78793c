"""What gc finds, and all that it must never touch."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import made_up_study as made
import toys
from command_line import here
from cpt_lab import lease, roster, study
from cpt_lab.commands import gc
from cpt_lab.commands.words import Words
from cpt_lab.specs import Spec, key
from cpt_lab.store import State, Store
from cpt_lab.study import Study
from spec_cases import INST, MATH

DAYS = 3 * 86400.0


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Store, Study]:
    """A study with all results."""
    store, asked = made.make(tmp_path / "results", fractions=(0.5, 1.0))
    made.finish(store, asked)
    return store, asked


def words(store: Store, *names: str, delete: bool = False) -> Words:
    return Words(names, frozenset(gc.FLAGS if delete else ()), store.root)


def age(path: Path) -> Path:
    """Make it days old."""
    then = time.time() - DAYS
    for place in (path, path / "plan.json"):
        if place.exists():
            os.utime(place, (then, then))
    return path


def unwanted(store: Store, spec: Spec, state: State = State.FAILED) -> Path:
    """The old folder of a build that nobody goes on with and no study wants."""
    store.mark(spec, state, "long ago")
    folder = store.folder(spec)
    (folder / "scratch").mkdir()
    (folder / "scratch" / "half").write_bytes(b"x" * 5000)
    return age(folder)


def found(store: Store) -> dict[Path, str]:
    return {one.path: one.what for one in gc.waste(store)}


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != "roster.json"}


# --------------------------------------------------------------------------------------------------------------- what goes


def test_it_lists_and_deletes_nothing_unless_told_to(finished: tuple[Store, Study], capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = finished
    folder = unwanted(store, MATH)
    before = files(store.root)
    assert gc.run(words(store)) == 0
    assert "abandoned build: 1" in capsys.readouterr().out
    assert files(store.root) == before
    assert gc.run(words(store, delete=True)) == 0
    assert not folder.exists()
    assert files(store.root) == {path: when for path, when in before.items() if folder not in path.parents}


def test_a_finished_study_has_no_waste(finished: tuple[Store, Study]) -> None:
    assert found(finished[0]) == {}


def test_leavings_of_dead_builds_and_scratch_of_finished_ones_go(finished: tuple[Store, Study]) -> None:
    store, asked = finished
    folder = store.folder(study.resolved(store, asked.points)[asked.points[0].name])
    (folder / "scratch").mkdir()
    for name in (".product-12345678", ".status.json.12345678", ".now-12345678"):
        (folder / name).mkdir() if "product" in name else (folder / name).touch()
        age(folder / name)
    (folder / ".product-fresh").mkdir()
    assert found(store) == {
        folder / "scratch": "scratch",
        **{folder / name: "leavings" for name in (".product-12345678", ".status.json.12345678", ".now-12345678")},
    }
    gc.run(words(store, delete=True))
    assert store.is_done(made.BASE)
    assert sorted(path.name for path in folder.glob(".*")) == [".product-fresh"]


def test_what_a_gc_that_was_ended_had_put_aside_goes_with_a_later_one(
    finished: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = finished
    aside = store.root / ".gc-12345678"
    (aside / "product").mkdir(parents=True)
    assert found(store) == {}  # it may be at work
    monkeypatch.setattr(gc, "SETTLED_SECONDS", -1.0)
    assert found(store)[aside] == "leavings"
    gc.remove(store, aside)
    assert not list(store.root.glob(".gc-*"))


def test_old_launches_and_the_code_that_nobody_runs_go(tmp_path: Path) -> None:
    first = toys.told(tmp_path, [MATH])
    second = toys.told(tmp_path, [INST])
    store = second.store()
    (tmp_path / "code" / "0123456789abcdef").mkdir()
    age(tmp_path / "code" / "0123456789abcdef")
    assert found(store) == {tmp_path / "code" / "0123456789abcdef": "code"}
    older, newer = sorted((first, second), key=lambda told: told.id)
    age(older.folder)
    age(newer.folder)
    assert found(store)[older.folder] == "launch"
    gc.run(words(store, delete=True))
    assert not older.folder.exists()
    assert (newer.folder / "code" / "cpt_lab").is_dir()


# -------------------------------------------------------------------------------------------------------------- what stays


def test_an_unfinished_build_that_a_study_wants_keeps_its_scratch(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = Study(name="wanted", points=(made.point(made.ranking("random", "ascending", 0), 0.5),))
    study.save(store, asked)
    folder = unwanted(store, made.BASE, State.PREEMPTED)
    assert found(store) == {}
    shutil.rmtree(study.folder(store, "wanted"))
    assert found(store) == {folder: "abandoned build"}


def test_what_is_young_queued_by_a_kept_launch_or_being_built_stays(tmp_path: Path) -> None:
    told = toys.told(tmp_path, [MATH, INST])
    store = told.store()
    for spec in (MATH, INST):
        age(store.folder(spec))
    young, built = made.BASE, made.TUNED
    Store(tmp_path).mark(young, State.FAILED)
    folder = unwanted(store, built, State.RUNNING)
    lease = store.claim(built)
    assert lease is not None
    age(folder)
    assert found(store) == {}
    assert not gc.remove(store, folder)
    lease.release()
    assert folder.exists()


def test_a_launch_whose_jobs_cannot_be_asked_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [toys.told(tmp_path, [MATH]) for _ in range(2)]
    older = age(min(one.folder for one in told))
    (older / "jobs.json").write_text(json.dumps({"data": {"job": "7", "tasks": 1, "ids": ["7"]}}))
    age(older)
    monkeypatch.setattr("cpt_lab.slurm.job_states", _no_slurm)
    assert found(told[0].store()) == {}
    monkeypatch.setattr("cpt_lab.slurm.job_states", lambda _: {"7": "PENDING"})
    assert found(told[0].store()) == {}
    monkeypatch.setattr("cpt_lab.slurm.job_states", lambda _: {})
    assert found(told[0].store()) == {older: "launch"}


def test_a_launch_that_died_elsewhere_goes_however_often_it_is_looked_at(tmp_path: Path) -> None:
    told = [toys.told(tmp_path, [MATH]) for _ in range(2)]
    older = age(min(one.folder for one in told))
    owner = lease.Owner(id="theirs", host="their-laptop", namespace="pid:[1]", pid=77, started="1", slurm_job="")
    (older / "lease.json").write_text(json.dumps(asdict(owner)))
    age(older / "lease.json")
    for _ in range(2):
        assert found(told[0].store()) == {older: "launch"}


def _no_slurm(_: object) -> dict[str, str]:
    raise ValueError("this machine has no squeue")


def test_the_code_that_a_result_was_made_with_stays(finished: tuple[Store, Study]) -> None:
    store, _ = finished
    for name in ("used", "unused"):
        (store.root / "code" / name).mkdir(parents=True)
        age(store.root / "code" / name)
    store.write_provenance(made.BASE, {"code": "used"})
    assert found(store) == {store.root / "code" / "unused": "code"}


def test_nothing_is_looked_for_while_a_study_cannot_be_read(finished: tuple[Store, Study]) -> None:
    store, asked = finished
    unwanted(store, MATH)
    (study.folder(store, asked.name) / "study.json").write_text("{}")
    assert "cannot be read" in here("gc", "--delete", f"results={store.root}").refusal
    assert store.folder(MATH).exists()


# ------------------------------------------------------------------------------------------------------------------- quota


def test_a_quota_never_takes_what_a_study_wants(finished: tuple[Store, Study], capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = finished
    before = files(store.root)
    assert gc.run(words(store, "quota=0", delete=True)) == 1
    assert "above the quota" in capsys.readouterr().out
    assert files(store.root) == before


def test_results_that_no_study_wants_go_oldest_first_and_none_before_what_needs_it(finished: tuple[Store, Study]) -> None:
    store, asked = finished
    shutil.rmtree(study.folder(store, asked.name))
    results = {f"{path.parent.parent.name}/{path.parent.name}" for path in store.root.glob("*/*/DONE")}
    order = [str(one.path.relative_to(store.root)) for one in gc.spare(store, set())]
    assert sorted(order) == sorted(results)
    needs = gc._needs_of_results(store)
    for place, name in enumerate(order):
        assert not any(name in needs[later] for later in order[place + 1 :])
    first = [name for name in order if name.startswith("evaluations/")]
    assert first == sorted(first, key=lambda name: (store.root / name / "DONE").stat().st_mtime)


def test_a_result_that_another_studys_result_needs_is_not_spare(finished: tuple[Store, Study]) -> None:
    store, asked = finished
    shutil.rmtree(study.folder(store, asked.name))
    study.save(store, Study(name="one", points=asked.points[:1]))
    spare = {one.path for one in gc.spare(store, set())}
    kept = roster.read(store, "one").folders
    assert spare
    assert not {str(path.relative_to(store.root)) for path in spare} & kept
    assert store.root / made.BASE.FOLDER / key(made.BASE) not in spare


def test_a_result_of_another_version_stops_results_from_being_offered(finished: tuple[Store, Study]) -> None:
    store, asked = finished
    shutil.rmtree(study.folder(store, asked.name))
    (store.folder(made.BASE) / "spec.json").write_text('{"kind": "of tomorrow"}')
    assert list(gc.spare(store, set())) == []


@pytest.mark.parametrize("quota", ["quota=much", "quota=-1", "quota=nan", "quota=inf", "quota="])
def test_a_quota_that_is_no_number_of_gigabytes_is_refused(tmp_path: Path, quota: str) -> None:
    assert f"gc {quota}: give the quota in GB" in here("gc", quota, f"results={tmp_path}").refusal


def test_the_size_of_a_folder_is_that_of_its_files_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"x" * 10000)
    os.link(tmp_path / "a" / "b", tmp_path / "a" / "c")
    (tmp_path / "d").symlink_to(tmp_path / "a" / "b")
    assert 10000 <= gc.size(tmp_path / "a") < 20000
    assert gc.size(tmp_path / "d") < 10000
