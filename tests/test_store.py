"""The store: whole files or none, states, and what a build leaves behind when it is interrupted anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cpt_lab.lease import Lease, LeaseLost
from cpt_lab.specs import Part, Spec, key, parse
from cpt_lab.store import SpecConflict, State, Store, read_json, write_atomically
from processes import hear, kill, start
from spec_cases import EVALUATION, FOLDER, MATH, ONE_OF_EACH, TEXT

BUILD_AND_HANG = """
import sys
from pathlib import Path
from spec_cases import MATH
from cpt_lab.store import Store
store = Store(Path(sys.argv[1]), launch="first")
with store.building(MATH, store.claim(MATH)) as work:
    (work.product / "half.txt").write_text("half")
    work.scratch.mkdir()
    (work.scratch / "state.txt").write_text("step 7")
    work.progress(7, 10, "steps")
    print("building", flush=True)
    sys.stdin.readline()
"""


def leased(store: Store, spec: Spec) -> Lease:
    lease = store.claim(spec)
    assert lease is not None
    return lease


def build(store: Store, spec: Spec, text: str = "whole") -> None:
    lease = leased(store, spec)
    with store.building(spec, lease) as work:
        (work.product / "result.txt").write_text(text)
    lease.release()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", launch="first")


# ------------------------------------------------------------------------------------------------------------------ files


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "old")
    write_atomically(tmp_path / "a.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.json", "half \ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize("text", ["", '{"half": ', "[1]"])
def test_json_that_is_not_a_whole_object_reads_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert read_json(tmp_path / "a.json") == {}
    assert read_json(tmp_path / "missing.json") == {}


def test_results_that_cannot_be_written_are_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be written .* choose another with results=FOLDER"):
        Store(tmp_path / "file" / "results").check_writable()


def test_a_check_of_the_results_folder_leaves_nothing_there(store: Store) -> None:
    store.check_writable()
    assert list(store.root.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------------ specs


def test_every_kind_of_spec_has_a_folder_of_its_own_and_is_read_back_from_it(store: Store) -> None:
    folders = {store.describe(spec) for spec in ONE_OF_EACH}
    assert len(folders) == len(ONE_OF_EACH)
    for spec in ONE_OF_EACH:
        assert store.folder(spec) == store.root / spec.FOLDER / key(spec)
        assert parse(read_json(store.folder(spec) / "spec.json")) == spec


def test_what_is_only_ever_part_of_another_spec_has_no_folder(store: Store) -> None:
    with pytest.raises(TypeError, match="only ever part of another spec"):
        store.folder(Part(corpus=MATH, tokens=1))


def test_another_spec_under_the_same_key_is_an_error_that_prints_the_difference(store: Store) -> None:
    path = store.describe(EVALUATION) / "spec.json"
    written = json.loads(path.read_text())
    written["checkpoint"]["tuned"]["mixture"]["parts"][1]["tokens"] = 999
    path.write_text(json.dumps(written))
    where = r"checkpoint\.tuned\.mixture\.parts\[1\]\.tokens is 999 in the store and 200 here; move the stored folder away"
    with pytest.raises(SpecConflict, match=where):
        store.claim(EVALUATION)


def test_a_checkpoint_that_moved_is_still_the_same_spec(store: Store) -> None:
    store.describe(FOLDER)
    assert store.describe(FOLDER.but(path="/elsewhere")) == store.folder(FOLDER)


# ----------------------------------------------------------------------------------------------------------------- states


def test_a_spec_that_nobody_has_touched_is_planned(store: Store) -> None:
    assert store.status(MATH).state is State.PLANNED
    assert not store.root.exists()


def test_a_build_that_ends_well_is_done_with_its_product_and_without_scratch(store: Store) -> None:
    lease = leased(store, MATH)
    with store.building(MATH, lease) as work:
        assert store.status(MATH).state is State.RUNNING
        work.scratch.mkdir()
        (work.product / "result.txt").write_text("whole")
        with pytest.raises(KeyError, match="is not done: build it first"):
            store.product(MATH)
    lease.release()
    assert store.status(MATH).state is State.DONE
    assert (store.product(MATH) / "result.txt").read_text() == "whole"
    assert {path.name for path in store.folder(MATH).iterdir()} == {"spec.json", "status.json", "product", "DONE"}


def test_a_build_that_raises_leaves_nothing_that_looks_finished(store: Store) -> None:
    lease = leased(store, MATH)

    def half_a_build() -> None:
        with store.building(MATH, lease) as work:
            (work.product / "half.txt").write_text("half")
            work.progress(1, 2, "documents")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half_a_build()
    lease.release()
    assert not store.is_done(MATH)
    assert {path.name for path in store.folder(MATH).iterdir()} == {"spec.json", "status.json"}


def test_done_is_written_only_after_the_product_is_in_its_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(path: Path, text: str) -> None:
        if path.name == "DONE":
            seen.append((path.parent / "product" / "result.txt").read_text())
        write_atomically(path, text)

    monkeypatch.setattr("cpt_lab.store.write_atomically", spy)
    build(store, MATH)
    assert seen == ["whole"]


def test_a_product_without_done_is_no_result_and_is_built_again(store: Store) -> None:
    build(store, MATH, "old")
    (store.folder(MATH) / "DONE").unlink()
    assert store.status(MATH).state is State.LOST
    build(store, MATH, "new")
    assert (store.product(MATH) / "result.txt").read_text() == "new"


def test_a_finished_product_is_never_cleaned(store: Store) -> None:
    build(store, MATH)
    with pytest.raises(AssertionError, match="never cleaned"):
        store.clean(MATH)


def test_a_builder_that_was_taken_over_publishes_nothing(store: Store) -> None:
    lease = leased(store, MATH)

    def build_after_the_lease_is_gone() -> None:
        with store.building(MATH, lease) as work:
            (work.product / "result.txt").write_text("late")
            lease.path.unlink()
            build(Store(store.root, launch="second"), MATH, "first")

    with pytest.raises(LeaseLost, match="was taken over by another worker"):
        build_after_the_lease_is_gone()
    lease.release()
    assert (store.product(MATH) / "result.txt").read_text() == "first"


def test_attempts_are_counted_per_launch_and_only_when_a_build_starts(store: Store) -> None:
    for state in (State.QUEUED, State.RUNNING, State.FAILED, State.RUNNING, State.PREEMPTED):
        store.mark(MATH, state, "because")
    status = store.status(MATH)
    assert (status.state, status.attempts, status.message, status.launch) == (State.PREEMPTED, 2, "because", "first")
    second = Store(store.root, launch="second")
    second.mark(MATH, State.RUNNING)
    assert second.status(MATH).attempts == 1


def test_a_state_remembers_the_array_job_it_was_written_in(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    store.mark(MATH, State.QUEUED)
    assert store.status(MATH).job == "78"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    store.mark(MATH, State.QUEUED)
    assert store.status(MATH).job == "77"


def test_states_of_different_specs_do_not_touch_each_other(store: Store) -> None:
    store.mark(MATH, State.FAILED, "no numbers")
    build(store, TEXT)
    assert (store.status(MATH).state, store.status(TEXT).state) == (State.FAILED, State.DONE)


# -------------------------------------------------------------------------------------------------------------- kill -9


def test_kill_9_in_the_middle_of_a_build_reads_lost_and_the_next_claim_builds_it_with_the_scratch(store: Store) -> None:
    victim = start(BUILD_AND_HANG, store.root)
    assert hear(victim) == "building"
    assert store.status(MATH).state is State.RUNNING
    assert store.progress(MATH)["done"] == 7
    kill(victim)

    lost = store.status(MATH)
    assert (lost.state, lost.attempts, lost.message) == (State.LOST, 1, "its worker ended without a word")
    assert not store.is_done(MATH)

    lease = leased(store, MATH)
    with store.building(MATH, lease) as work:
        assert list(work.product.iterdir()) == []
        assert (work.scratch / "state.txt").read_text() == "step 7"
        (work.product / "result.txt").write_text("whole")
    lease.release()
    done = store.status(MATH)
    assert (done.state, done.attempts) == (State.DONE, 2)
    assert [path.name for path in store.product(MATH).iterdir()] == ["result.txt"]
    assert not hidden(store.root)
    assert not (store.folder(MATH) / "scratch").exists()
