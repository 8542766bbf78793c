"""The roster of a study is what its manifest says, at every moment, without reading it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import made_up_study as made
from cpt_lab import roster, study
from cpt_lab.roster import Entry, Roster
from cpt_lab.specs import key
from cpt_lab.store import State, Store
from cpt_lab.study import Study
from cpt_lab.tracking_settings import Tracking
from processes import ROOT, TESTS, UNPRIVILEGED

ORDERS = tuple(made.ranking("random", "ascending", seed) for seed in range(3))
FRACTIONS = (0.25, 0.5, 1.0)


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[Store, Study]:
    """A saved study none of whose rankings is known."""
    store = Store(tmp_path / "results")
    asked = Study(name="waiting", points=tuple(made.point(order, fraction) for order in ORDERS for fraction in FRACTIONS))
    study.save(store, asked)
    return store, asked


def rank(store: Store, index: int) -> None:
    heads = [[layer, head] for layer in range(2) for head in range(4)]
    made.build(store, ORDERS[index], {"ranking.json": {"order": heads[index:] + heads[:index]}})


def agrees(store: Store, asked: Study) -> None:
    """Folders and states are those of the specs themselves."""
    found = roster.read(store, asked.name)
    specs = study.resolved(store, asked.points)
    assert {entry.name: entry.folder for entry in found.entries} == {name: f"{spec.FOLDER}/{key(spec)}" for name, spec in specs.items()}
    assert roster.states(store, found) == {name: study.point_status(store, spec) for name, spec in specs.items()}


def test_points_move_to_their_folders_as_their_rankings_become_known(waiting: tuple[Store, Study]) -> None:
    store, asked = waiting
    agrees(store, asked)
    for index in (1, 0, 2):
        rank(store, index)
        agrees(store, asked)
    for index, spec in enumerate(study.resolved(store, asked.points).values()):
        store.mark(spec, list(State)[index])
    agrees(store, asked)


def test_points_behind_a_ranking_that_failed_are_blocked(waiting: tuple[Store, Study]) -> None:
    store, asked = waiting
    rank(store, 0)
    store.mark(ORDERS[1], State.FAILED, "no scores")
    agrees(store, asked)
    states = roster.states(store, roster.read(store, asked.name))
    blocked = [name for name, status in states.items() if status.state is State.BLOCKED]
    assert blocked == [point.name for point in asked.points[3:5]]  # all heads are all heads in any order


def test_a_look_at_an_unchanged_study_reads_no_manifest(waiting: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = waiting
    first = roster.read(store, asked.name)
    monkeypatch.setattr("cpt_lab.study.load", lambda *_: pytest.fail("the manifest was read"))
    assert roster.read(store, asked.name) == first


def test_a_study_that_was_asked_anew_has_a_new_roster(waiting: tuple[Store, Study]) -> None:
    store, asked = waiting
    roster.read(store, asked.name)
    fewer = asked.model_copy(update={"points": asked.points[:2]})
    study.save(store, fewer)
    agrees(store, fewer)


def test_a_manifest_written_while_a_roster_is_made_has_one_of_its_own(
    waiting: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, asked = waiting
    fewer, plain = asked.model_copy(update={"points": asked.points[:2]}), roster.of
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(roster, "of", lambda *given: (plain(*given), study.save(store, fewer))[0])
        roster.write(store, asked, study.save(store, asked))
    agrees(store, fewer)


def test_a_roster_cut_short_is_made_anew(waiting: tuple[Store, Study]) -> None:
    store, asked = waiting
    roster.read(store, asked.name)
    path = study.folder(store, asked.name) / "roster.json"
    path.write_text(path.read_text()[:100])
    agrees(store, asked)


def test_a_store_that_cannot_be_written_can_be_looked_at(waiting: tuple[Store, Study]) -> None:
    store, asked = waiting
    study.folder(store, asked.name).chmod(0o500)
    look = "import sys, test_roster as t; store = t.Store(t.Path(sys.argv[1])); t.agrees(store, t.study.load(store, 'waiting'))"
    place = {**os.environ, "PYTHONPATH": f"{ROOT}:{TESTS}"}
    looked = subprocess.run(
        [*UNPRIVILEGED, sys.executable, "-c", look, str(store.root)], env=place, capture_output=True, text=True, check=False
    )
    assert looked.returncode == 0, looked.stderr
    assert not (study.folder(store, asked.name) / "roster.json").exists()


def test_a_store_whose_disk_is_full_can_be_looked_at(waiting: tuple[Store, Study], monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = waiting
    monkeypatch.setattr(roster, "write_atomically", _no_space)
    agrees(store, asked)
    assert not (study.folder(store, asked.name) / "roster.json").exists()


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_the_folders_of_a_study_are_all_that_it_refers_to(waiting: tuple[Store, Study]) -> None:
    store, asked = waiting
    rank(store, 0)
    folders = roster.read(store, asked.name).folders
    for spec in (*ORDERS, made.BASE, made.TUNED, made.PROTOCOL, made.TOKENIZER, *study.resolved(store, asked.points).values()):
        assert f"{spec.FOLDER}/{key(spec)}" in folders


def test_a_study_read_from_its_manifest_is_the_study_and_its_points_share_their_parts(tmp_path: Path) -> None:
    store, asked = made.make(tmp_path)
    read = study.load(store, asked.name)
    assert read == asked
    first, second = (point.spec for point in read.points[:2])
    assert first.checkpoint.tuned is second.checkpoint.tuned  # type: ignore[attr-defined]
    assert first.protocol is second.protocol  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------ 5,000 points


def large(root: Path, count: int) -> Store:
    """A launched study of so many points, as its roster, with states and results: no manifest could be read in time."""
    store = Store(root)
    entries = tuple(Entry(f"point {index}", f"evaluations/tiny-{index:016x}", (), "") for index in range(count))
    for index, entry in enumerate(entries):
        place = root / entry.folder
        state = ("done", "failed", "queued", "running")[0 if index % 4 else index // 4 % 4]
        (place / "product").mkdir(parents=True)
        status = {"state": state, "message": "told to" if state == "failed" else "", "attempts": 1, "since": time.time(), "launch": "one"}
        (place / "status.json").write_text(json.dumps(status))
        if state == "done":
            (place / "DONE").touch()
            (place / "provenance.json").write_text('{"git": "0123abc", "warnings": ["told so"]}')
            (place / "product" / "results.json").write_text('{"metrics": {}, "warnings": []}')
    manifest = root / "studies" / "large" / "study.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{not read}")
    named = Roster(study="large", entries=entries, needs=(), probes=(), chains={}, trainings=(), tracking=Tracking())
    roster._keep(named, manifest, roster._stamp(manifest.stat()))
    return store


@pytest.mark.slow
def test_the_status_of_5000_points_opens_each_file_once_and_no_manifest(tmp_path: Path) -> None:
    large(tmp_path, 5000)
    command = [sys.executable, "-m", "cpt_lab", "status", "large", f"results={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("study large: 5000 points: 4063 done, 313 failed, 312 queued, 312 lost\n")
    assert "warning: told so (4063 results)" in done.stdout


@pytest.mark.slow
def test_a_look_costs_at_most_three_opened_files_a_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cpt_lab import standing

    store, opened = large(tmp_path, 200), []
    plain = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: opened.append(path) or plain(path))  # type: ignore[func-returns-value]
    named = roster.read(store, "large")
    found = standing.look(store, named)
    standing.warnings(store, named, found)
    assert len(found.points) == 200
    assert len(opened) <= 3 * 200 + 1
    assert len(set(opened)) == len(opened)
