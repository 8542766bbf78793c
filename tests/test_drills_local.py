"""Fault drills on this machine: broken leases, wrong clocks, disks that take nothing more, an MLflow that is away."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import toys
from cpt_lab import lease
from cpt_lab.launch import Launch
from cpt_lab.specs import key
from cpt_lab.store import State
from cpt_lab.tracking_settings import Tracking
from cpt_lab.worker import NO_ROOM
from drills import POINTS, VICTIM, check_mlflow, check_once, told
from processes import wait_for

pytestmark = pytest.mark.slow
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")

LONG = 60.0
BEAT = 0.2
FAST_BEATS = {"TOY_BEAT_SECONDS": str(BEAT)}


def on_host(name: str, hours: float = 0.0) -> dict[str, str]:
    """The environment of a worker on another machine, whose clock is wrong."""
    return {**FAST_BEATS, "TOY_HOST": name, "TOY_CLOCK_HOURS": str(hours)}


def wait_until_reached(launch: Launch) -> None:
    wait_for(lambda: (launch.store().folder(VICTIM) / "hanging").exists(), what="the build of the victim", seconds=LONG)


def wait_until_others_are_done(launch: Launch) -> None:
    wait_for(lambda: sum(map(launch.store().is_done, POINTS)) == len(POINTS) - 1, what="the other points", seconds=LONG)


def opened(launch: Launch) -> None:
    (launch.results / "open").touch()


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=LONG)
    return process.returncode


def begun(launch: Launch) -> int:
    return [name for _, name in toys.notes(launch.results)].count(key(VICTIM))


# ------------------------------------------------------------------------------------------------------------------ leases


def test_a_lease_truncated_under_a_living_worker_is_taken_over_and_one_result_counts(tmp_path: Path) -> None:
    launch = told(tmp_path / "results", where="local")
    with toys.workers(launch, 2, environment=FAST_BEATS) as workers:
        wait_until_reached(launch)
        (launch.store().folder(VICTIM) / "lease.json").write_text("")
        wait_for(lambda: begun(launch) == 2, what="the other worker's taking over", seconds=LONG)
        opened(launch)
        assert [ended(worker) for worker in workers] == [0, 0]
    check_once(launch.results, again=[VICTIM])


def test_hosts_whose_clocks_are_an_hour_apart_take_nothing_from_each_other(tmp_path: Path) -> None:
    launch = told(tmp_path / "results", where="local")
    with (
        toys.workers(launch, environment=on_host("early", -1)) as (early,),
        toys.workers(launch, environment=on_host("late", 1)) as (late,),
    ):
        wait_until_reached(launch)
        wait_until_others_are_done(launch)
        held = launch.store().folder(VICTIM) / "lease.json"
        for _ in range(2 * lease.MISSED_BEATS):
            before = held.stat().st_mtime_ns
            wait_for(lambda before=before: held.stat().st_mtime_ns > before, what="a beat", seconds=LONG)  # type: ignore[misc]
        opened(launch)
        assert (ended(early), ended(late)) == (0, 0)
    check_once(launch.results)


def test_a_host_that_dies_is_succeeded_by_one_whose_clock_is_an_hour_behind(tmp_path: Path) -> None:
    launch = told(tmp_path / "results", where="local")
    with toys.workers(launch, environment=on_host("late", 1)) as (dying,):
        wait_until_reached(launch)
        dying.kill()
    opened(launch)
    with toys.workers(launch, environment=on_host("early", -1)) as (heir,):
        assert ended(heir) == 0
    check_once(launch.results, again=[VICTIM])


# ------------------------------------------------------------------------------------------------------------------- disks


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of its own below this folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "drill", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    return filler


@as_root
def test_a_full_disk_ends_the_workers_and_the_next_launch_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        launch = told(disk / "results", where="local")
        with toys.workers(launch, 2, environment=FAST_BEATS) as workers:
            wait_until_reached(launch)
            filler = fill(disk)
            os.link(launch.results / "script.json", launch.results / "open")  # without a byte
            assert NO_ROOM in {ended(worker) for worker in workers}
        states = {launch.store().status(spec).state for spec in POINTS}
        assert State.FAILED not in states
        filler.unlink()
        again = told(launch.results, where="local")
        with toys.workers(again) as (worker,):
            assert ended(worker) == 0
        check_once(launch.results, again=POINTS)


@as_root
def test_a_read_only_store_ends_the_workers_shows_its_states_and_is_gone_on_with(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        launch = told(disk / "results", where="local")
        with toys.workers(launch) as (killed,):
            wait_until_reached(launch)
            killed.kill()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = [launch.store().status(spec).state for spec in POINTS]
        assert before[POINTS.index(VICTIM)] is State.LOST
        with toys.workers(launch) as (worker,):
            said, _ = worker.communicate(timeout=LONG)
        assert worker.returncode == NO_ROOM
        assert os.strerror(errno.EROFS) in said
        assert [launch.store().status(spec).state for spec in POINTS] == before
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        opened(launch)
        with toys.workers(launch) as (worker,):
            assert ended(worker) == 0
        check_once(launch.results, again=[VICTIM])


# ------------------------------------------------------------------------------------------------------------------ MLflow


@contextmanager
def server(folder: Path, port: int) -> Iterator[None]:
    """An MLflow server over a SQLite file, ready to answer."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    place = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=place)
    try:
        wait_for(lambda: answers(port), what="the server's first answer", seconds=2 * LONG)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_mlflow_server_that_is_away_for_the_sweep_costs_nothing_and_is_completed_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    settings = Tracking(kind="server", uri=f"http://127.0.0.1:{port}")
    launch = told(tmp_path / "results", settings=settings)  # where=slurm: its worker mirrors what it did
    opened(launch)
    with toys.workers(launch) as (worker,):
        said, _ = worker.communicate(timeout=LONG)
    assert worker.returncode == 0
    assert "warning: MLflow cannot be written now" in said
    check_once(launch.results)
    with server(tmp_path, port):
        check_mlflow(launch.results, Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db"), by=settings)
