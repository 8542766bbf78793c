"""Fault drills on this machine: broken leases, wrong clocks, disks that take nothing more, an MLflow that is away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

import made_up_study as made
import toys
from cpt_lab import lease, local, study, tracking
from cpt_lab.launch import Launch
from cpt_lab.specs import key
from cpt_lab.store import State, Store
from cpt_lab.study import Study
from cpt_lab.tracking import TrackingUnavailable
from cpt_lab.tracking_settings import Tracking
from cpt_lab.worker import NO_ROOM
from drills import POINTS, VICTIM, check_mlflow, check_once, runs, told
from processes import start, wait_for
from servers import PATIENCE, MLflowServer, postgres, programs

pytestmark = pytest.mark.slow
needs_postgres = pytest.mark.skipif(programs() is None, reason="needs PostgreSQL: apt-get install postgresql")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")

LONG = 180.0
BEAT = 1.0  # three of them without a sign of life are a death: a busy machine may keep a living thread from its beat for a while
SYNC_SECONDS = 0.2
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


def test_an_mlflow_server_that_is_away_for_the_sweep_costs_nothing_and_is_completed_when_it_is_back(tmp_path: Path) -> None:
    server = MLflowServer(tmp_path)
    settings = Tracking(kind="server", uri=server.uri)
    launch = told(tmp_path / "results", settings=settings)  # where=slurm: its worker mirrors what it did
    opened(launch)
    with toys.workers(launch) as (worker,):
        said, _ = worker.communicate(timeout=LONG)
    assert worker.returncode == 0
    assert "warning: MLflow cannot be written now" in said
    check_once(launch.results)
    with server:
        check_mlflow(launch.results, settings, database=server.database)


def test_an_mlflow_server_stopped_in_mid_sweep_and_started_again_has_every_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MLflowServer(tmp_path) as server:
        sweep_through(server, server.stop, server.start, tmp_path / "results", monkeypatch)


@needs_postgres
def test_a_postgresql_restarted_in_mid_sweep_costs_nothing_and_has_every_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres() as database, MLflowServer(tmp_path, database.uri) as server:
        sweep_through(server, database.stop, database.start, tmp_path / "results", monkeypatch)


def sweep_through(
    server: MLflowServer, away: Callable[[], None], back: Callable[[], None], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that is mirrored as it goes: MLflow is taken away between two points and comes back between two others."""
    monkeypatch.setattr(local, "SYNC_SECONDS", SYNC_SECONDS)
    first, second = key(POINTS[2]), key(POINTS[5])
    settings = Tracking(kind="server", uri=server.uri)
    launch = told(root, where="local", packs=1, settings=settings, gates={first: "first", second: "second"})
    store, asked = launch.store(), study.load(launch.store(), launch.study)
    with local.tracking_in_background(store, asked), toys.workers(launch, environment=FAST_BEATS) as (worker,):
        mirrored(store, asked, server.database, first)
        away()
        with pytest.raises(TrackingUnavailable, match="nothing is lost"):
            tracking.reconcile(store, asked.name, settings)
        (root / "openfirst").touch()
        wait_for(lambda: (root / "evaluations" / second / "hanging").exists(), what="the second gate", seconds=LONG)
        back()
        mirrored(store, asked, server.database, second)
        (root / "opensecond").touch()
        assert ended(worker) == 0
    check_once(root)
    check_mlflow(root, settings, database=server.database)


def mirrored(store: Store, asked: Study, database: str, gate: str) -> None:
    """Wait until a worker stands at the gate and MLflow shows, as finished, every point that is done, of which there are some."""
    wait_for(lambda: (store.root / "evaluations" / gate / "hanging").exists(), what="the gate", seconds=LONG)
    done = {point.name for point in asked.points if store.is_done(point.spec)}
    assert 0 < len(done) < len(asked.points)
    wait_for(lambda: done <= finished(store, database), what=f"{sorted(done)} in MLflow", seconds=PATIENCE)


def finished(store: Store, database: str) -> set[str]:
    try:
        return {name for name, status in runs(database, store) if status == "FINISHED"}
    except (FileNotFoundError, SQLAlchemyError):  # neither the store has its name yet nor MLflow its tables
        return set()


def test_an_mlflow_server_killed_while_a_sync_writes_gets_the_rest_from_the_next(tmp_path: Path) -> None:
    store, asked = made.make(tmp_path / "results")
    made.finish(store, asked)
    with MLflowServer(tmp_path) as server:
        settings = Tracking(kind="server", uri=server.uri)
        study.save(store, asked.model_copy(update={"tracking": settings}))
        syncing = start(SYNC, tmp_path / "results")
        wait_for(lambda: len(finished(store, server.database)) > 2, what="some runs", seconds=PATIENCE)
        syncing.send_signal(signal.SIGSTOP)  # so that it cannot be done before the server is away
        server.stop()
        syncing.send_signal(signal.SIGCONT)
        said, _ = syncing.communicate(timeout=PATIENCE)
        assert "MLflow cannot be written now" in said
        server.start()
        tracking.sync(store, asked.name, settings)
        names = Counter(name for name, status in runs(server.database, store) if status == "FINISHED")
        assert {point.name for point in asked.points} <= set(names)
        assert set(names.values()) == {1}
        assert tracking.reconcile(store, asked.name, settings).mended == 0


SYNC = """
import sys
from pathlib import Path
from cpt_lab import roster, tracking
from cpt_lab.store import Store
store = Store(Path(sys.argv[1]))
try:
    tracking.sync(store, "made_up", roster.read(store, "made_up").tracking)
except tracking.TrackingUnavailable as error:
    print(error)
"""
