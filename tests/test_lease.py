"""Leases among real processes: one owner at a time, the dead are succeeded once, the living never."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cpt_lab import lease
from cpt_lab.lease import BEAT_SECONDS, MISSED_BEATS, Owner, claim, holder
from processes import hear, kill, many, say, start, wait_for

TAKERS = 8
ROUNDS = 25
CLAIM_ALL = """
import sys
from pathlib import Path
from cpt_lab.lease import claim
folders = sorted(Path(sys.argv[1]).iterdir())
print("ready", flush=True)
sys.stdin.readline()
leases = [claim(folder) for folder in folders]
print(*[index for index, lease in enumerate(leases) if lease], flush=True)
sys.stdin.readline()
print(*[index for index, lease in enumerate(leases) if lease and lease.held()], flush=True)
"""
CLAIM_AND_WAIT = """
import sys
from pathlib import Path
from cpt_lab.lease import claim
assert claim(Path(sys.argv[1]))
print("mine", flush=True)
sys.stdin.readline()
"""
ELSEWHERE = Owner(id="e" * 32, host="another-host", namespace="pid:[1]", pid=1, started="1", slurm_job="")


@pytest.fixture(autouse=True)
def _ask_squeue_anew() -> None:
    lease._in_queue.cache_clear()


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, int], None]:
    """Puts a squeue on the PATH that prints one thing, says another on stderr and exits so."""

    def answers(printed: str, said: str = "", code: int = 0) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        command = folder / "squeue"
        command.write_text(f"#!/bin/sh\nprintf '%s' '{printed}'\nprintf '%s' '{said}' >&2\nexit {code}\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return answers


def leave_lease(folder: Path, owner: Owner, *, silent_beats: float = 0.0) -> Path:
    """A lease file as this owner left it, so long after its last beat."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lease.json"
    path.write_text(json.dumps(asdict(owner)))
    last = time.time() - silent_beats * BEAT_SECONDS
    os.utime(path, (last, last))
    return path


def dead_owner() -> Owner:
    """An owner on this machine whose process has ended."""
    process = start("")
    process.communicate()
    return replace(Owner.me(), id="d" * 32, pid=process.pid)


def race(root: Path) -> tuple[list[list[str]], list[list[str]]]:
    """All takers claim all folders below the root at once: what each got, and what each still had when all were through."""
    with many(CLAIM_ALL, [[root]] * TAKERS) as takers:
        for taker in takers:
            assert hear(taker) == "ready"
        for taker in takers:
            say(taker, "go")
        got = [hear(taker).split() for taker in takers]
        for taker in takers:
            say(taker, "still there?")
        return got, [hear(taker).split() for taker in takers]


def folders(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "race" / f"{index:02d}" for index in range(ROUNDS)]
    for path in paths:
        path.mkdir(parents=True)
    return paths


def each_once(lists: list[list[str]]) -> bool:
    return sorted(int(index) for got in lists for index in got) == list(range(ROUNDS))


# ------------------------------------------------------------------------------------------------------- among the living


def test_of_many_processes_that_claim_a_folder_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    folders(tmp_path)
    got, kept = race(tmp_path / "race")
    assert each_once(got)
    assert kept == got


def test_the_lease_of_a_dead_process_is_taken_over_exactly_once_by_racing_takers(tmp_path: Path) -> None:
    owner = dead_owner()
    for path in folders(tmp_path):
        leave_lease(path, owner)
    got, kept = race(tmp_path / "race")
    assert each_once(got)
    assert kept == got
    assert not [path for path in (tmp_path / "race").rglob("*") if path.name.startswith(".")]


def test_a_lease_is_exclusive_until_it_is_released(tmp_path: Path) -> None:
    first = claim(tmp_path)
    assert first is not None
    assert claim(tmp_path) is None
    assert holder(tmp_path) == first.owner
    first.release()
    assert holder(tmp_path) is None
    second = claim(tmp_path)
    assert second is not None
    second.release()
    assert not list(tmp_path.iterdir())


def test_the_lease_of_a_living_process_is_not_taken_however_long_it_is_silent(tmp_path: Path) -> None:
    owner = start(CLAIM_AND_WAIT, tmp_path)
    assert hear(owner) == "mine"
    last = time.time() - 1000 * BEAT_SECONDS
    os.utime(tmp_path / "lease.json", (last, last))
    try:
        assert claim(tmp_path) is None
        assert holder(tmp_path) is not None
    finally:
        kill(owner)
    taken = claim(tmp_path)
    assert taken is not None
    taken.release()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    owner = start(CLAIM_AND_WAIT, tmp_path)
    assert hear(owner) == "mine"
    kill(owner)
    assert holder(tmp_path) is None


def test_another_process_with_the_same_pid_is_not_the_owner(tmp_path: Path) -> None:
    me = Owner.me()
    assert me.is_gone() is False
    leave_lease(tmp_path, replace(me, id="a" * 32, started=str(int(me.started) - 1)))
    assert holder(tmp_path) is None


def test_the_same_pid_in_another_container_says_nothing(tmp_path: Path) -> None:
    owner = replace(Owner.me(), id="a" * 32, namespace="pid:[1]", started="1")
    assert owner.is_gone() is None
    leave_lease(tmp_path, owner)
    assert holder(tmp_path) == owner


def test_an_owner_that_was_taken_over_sees_it_and_removes_nothing_of_its_successor(tmp_path: Path) -> None:
    mine = claim(tmp_path)
    assert mine is not None
    leave_lease(tmp_path, ELSEWHERE)
    assert not mine.held()
    mine.release()
    assert holder(tmp_path) == ELSEWHERE


# ------------------------------------------------------------------------------------------------------------- heartbeats


def test_a_held_lease_beats_and_goes_on_beating_after_the_file_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    held = claim(tmp_path)
    assert held is not None

    def beats() -> None:
        os.utime(held.path, (0, 0))
        wait_for(lambda: held.path.stat().st_mtime > 0, what="a beat", seconds=10)

    beats()
    held.path.rename(tmp_path / "away")
    seen = lease._read
    looked = []
    monkeypatch.setattr(lease, "_read", lambda path: looked.append(path) or seen(path))
    wait_for(lambda: bool(looked), what="a look at the missing lease", seconds=10)
    (tmp_path / "away").rename(held.path)
    beats()
    held.release()


def test_an_owner_on_another_host_lives_while_it_beats_and_is_succeeded_when_it_has_missed_three_beats(tmp_path: Path) -> None:
    leave_lease(tmp_path, ELSEWHERE, silent_beats=MISSED_BEATS - 0.5)
    assert claim(tmp_path) is None
    leave_lease(tmp_path, ELSEWHERE, silent_beats=MISSED_BEATS + 0.1)
    taken = claim(tmp_path)
    assert taken is not None
    taken.release()


def test_looking_at_a_lease_that_has_just_beaten_writes_nothing(tmp_path: Path) -> None:
    leave_lease(tmp_path, ELSEWHERE)
    before = tmp_path.stat().st_mtime_ns
    assert holder(tmp_path) == ELSEWHERE
    assert tmp_path.stat().st_mtime_ns == before


def test_a_clock_that_is_wrong_by_an_hour_makes_no_lease_stale_and_keeps_none_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time
    for hours in (-1, 1):
        monkeypatch.setattr(lease.time, "time", lambda hours=hours: clock() + 3600 * hours)
        fresh, silent = tmp_path / f"fresh{hours}", tmp_path / f"silent{hours}"
        for folder, beats in ((fresh, 0.0), (silent, MISSED_BEATS + 0.1)):
            path = leave_lease(folder, ELSEWHERE)
            os.utime(path, (clock() - beats * BEAT_SECONDS,) * 2)
        assert holder(fresh) == ELSEWHERE
        assert holder(silent) is None


def test_a_lease_that_was_cut_short_is_waited_for_and_then_taken(tmp_path: Path) -> None:
    path = leave_lease(tmp_path, ELSEWHERE)
    path.write_text("")
    assert claim(tmp_path) is None
    last = time.time() - (MISSED_BEATS + 0.1) * BEAT_SECONDS
    os.utime(path, (last, last))
    taken = claim(tmp_path)
    assert taken is not None
    assert holder(tmp_path) == taken.owner
    taken.release()


def test_a_cut_short_lease_is_taken_exactly_once_by_racing_takers(tmp_path: Path) -> None:
    last = time.time() - (MISSED_BEATS + 0.1) * BEAT_SECONDS
    for path in folders(tmp_path):
        (path / "lease.json").touch()
        os.utime(path / "lease.json", (last, last))
    got, kept = race(tmp_path / "race")
    assert each_once(got)
    assert kept == got


def test_a_taker_that_died_in_the_act_blocks_others_only_for_three_beats(tmp_path: Path) -> None:
    owner = dead_owner()
    leave_lease(tmp_path, owner)
    guard = tmp_path / f".takeover-{owner.id}"
    guard.touch()
    assert claim(tmp_path) is None
    last = time.time() - (MISSED_BEATS + 0.1) * BEAT_SECONDS
    os.utime(guard, (last, last))
    assert claim(tmp_path) is None  # this one frees the way
    taken = claim(tmp_path)
    assert taken is not None
    taken.release()


# ------------------------------------------------------------------------------------------------------------------ SLURM


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING"])
def test_a_silent_owner_whose_job_may_still_run_is_not_succeeded(squeue: Callable[..., None], tmp_path: Path, state: str) -> None:
    squeue(f"{state}\n")
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=10)
    assert claim(tmp_path / "spec") is None


@pytest.mark.parametrize("state", ["", "PENDING\n", "REQUEUE_HOLD\n"])
def test_a_silent_owner_whose_job_has_ended_or_waits_to_run_again_is_succeeded(
    squeue: Callable[..., None], tmp_path: Path, state: str
) -> None:
    squeue(state)
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=10)
    taken = claim(tmp_path / "spec")
    assert taken is not None
    taken.release()


def test_a_job_that_slurm_has_forgotten_has_ended(squeue: Callable[..., None], tmp_path: Path) -> None:
    squeue("", "slurm_load_jobs error: Invalid job id specified", 1)
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=10)
    assert holder(tmp_path / "spec") is None


def test_nobody_is_succeeded_while_slurm_does_not_answer(squeue: Callable[..., None], tmp_path: Path) -> None:
    squeue("", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=1000)
    assert claim(tmp_path / "spec") is None


def test_nobody_is_succeeded_where_there_is_no_squeue_to_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=1000)
    assert claim(tmp_path / "spec") is None


def test_a_beating_owner_is_never_asked_for_in_the_queue(squeue: Callable[..., None], tmp_path: Path) -> None:
    squeue("")
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=1)
    assert claim(tmp_path / "spec") is None


def test_a_requeued_job_succeeds_its_own_earlier_run(squeue: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue("RUNNING\n")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    leave_lease(tmp_path / "spec", replace(ELSEWHERE, slurm_job="77"), silent_beats=10)
    taken = claim(tmp_path / "spec")
    assert taken is not None
    assert (taken.owner.host, taken.owner.slurm_job) == (socket.gethostname(), "77")
    taken.release()


def test_a_claim_that_finds_the_disk_full_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: str) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        claim(tmp_path)
    assert list(tmp_path.iterdir()) == []
