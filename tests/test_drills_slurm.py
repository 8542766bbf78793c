"""Fault drills on a real SLURM of three nodes: whatever happens, every point is done once, nothing half stands about, MLflow agrees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import toys
from cpt_lab import slurm, tracking
from cpt_lab.launch import load
from cpt_lab.specs import key
from cpt_lab.store import State
from cpt_lab.tracking_settings import Tracking
from devcluster_fixture import running_devcluster
from drills import POINTS, SITE, VICTIM, Drill, check_mlflow, check_once, submit, told
from processes import PATIENCE, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

LAUNCH_ELSEWHERE = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
import drills
drill = drills.submit(drills.told(Path(sys.argv[1])), drills.SITE.model_copy(update={"extra": {"hold": True}}))
print(drill.told.folder, *drill.tasks)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with running_devcluster("--nodes", "3") as folder:
        yield folder


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    """One database for all drills: making one takes seconds. Each store is a study of its own in it."""
    folder = tmp_path_factory.mktemp("mlflow")
    settings = Tracking(uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "artifacts"))
    tracking.initialise(settings)
    return settings


@pytest.fixture
def root(tmp_path: Path, cluster: Path) -> Path:
    del cluster  # it runs
    return tmp_path / "results"


@pytest.fixture
def drill(root: Path) -> Drill:
    """Two workers of one launch, one of which stands in the victim."""
    begun = submit(told(root))
    begun.wait_until_reached()
    return begun


def victims_process(root: Path) -> int:
    """The worker that builds the victim."""
    return next(process for process, name in reversed(toys.notes(root)) if name == key(VICTIM))


def environment(process: int) -> dict[str, str]:
    pairs = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def task_of(process: int) -> list[int]:
    """All Python processes of the same task: the worker and its keeper."""
    job = environment(process)["SLURM_JOB_ID"]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().startswith("python") and environment(int(folder.name)).get("SLURM_JOB_ID") == job:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_9(processes: list[int]) -> None:
    """SIGKILL to all at once: one that is killed later must not act on the death of the first. Some may have ended."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)


def wait_for_the_others(drill: Drill) -> None:
    """Until the victim alone is not done: what the other worker has in hand when it is stopped is begun again as well."""
    wait_for(lambda: sum(map(drill.store.is_done, POINTS)) == len(POINTS) - 1, what="the other points")


def times_begun(root: Path) -> int:
    """How often a worker came to the victim."""
    return [name for _, name in toys.notes(root)].count(key(VICTIM))


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()


def relaunch(root: Path) -> Drill:
    """The same command again."""
    (root / "open").touch()
    return submit(told(root))


# ---------------------------------------------------------------------------------------------------------- what is killed


def test_kill_9_of_a_worker(drill: Drill, mlflow: Tracking) -> None:
    os.kill(victims_process(drill.root), signal.SIGKILL)
    drill.open()
    assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(drill.root, again=[VICTIM])
    check_mlflow(drill.root, mlflow)
    assert drill.store.status(VICTIM).attempts == 2


def test_kill_9_of_everything_of_a_task(drill: Drill, mlflow: Tracking) -> None:
    kill_9(task_of(victims_process(drill.root)))
    drill.open()
    assert sorted(drill.wait_for_end()) == ["COMPLETED", "FAILED"]
    check_once(drill.root, again=[VICTIM])
    check_mlflow(drill.root, mlflow)


def test_a_point_that_kills_every_worker_is_given_up_and_costs_no_other_point(root: Path) -> None:
    launch = told(root)
    toys.write_script(root, {key(VICTIM): "segfault"})
    ended = submit(launch)
    assert ended.wait_for_end() == ["FAILED", "FAILED"]
    states = {key(spec): ended.store.status(spec).state for spec in POINTS}
    assert states.pop(key(VICTIM)) is State.FAILED
    assert set(states.values()) == {State.DONE}
    assert ended.store.status(VICTIM).message == "its worker ended without a word (4 times); see log.txt"


def test_scancel(drill: Drill, mlflow: Tracking) -> None:
    wait_for_the_others(drill)
    slurm.cancel(drill.tasks)
    assert set(drill.wait_for_end()) <= {"CANCELLED", "COMPLETED"}
    status = drill.store.status(VICTIM)
    assert (status.state, status.message) == (State.CANCELLED, "handed back by a signal")
    again = relaunch(drill.root)
    assert again.wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(drill.root, again=[VICTIM])
    check_mlflow(drill.root, mlflow)


# ------------------------------------------------------------------------------------------------------- what SLURM takes away


def test_preemption_by_a_higher_partition_requeues_and_goes_on(root: Path, mlflow: Tracking) -> None:
    drill = submit(told(root), SITE.model_copy(update={"partition": "spare"}))
    drill.wait_until_reached()
    wait_for_the_others(drill)
    until_open = f"--wrap=until [ -e {root}/open ]; do sleep 0.2; done"
    better = ask("sbatch", "--parsable", "--partition=dev", "--nodes=3", "--exclusive", "--time=10", "--output=/dev/null", until_open)
    wait_for(lambda: drill.store.status(VICTIM).state is State.PREEMPTED, what="the handing back")
    wait_for(lambda: slurm.job_states([better]) == {better: "RUNNING"}, what="the start of the better job")
    drill.open()
    wait_for(lambda: set(slurm.job_states([better]).values()) == {"COMPLETED"}, what="the better job")
    assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(root, again=[VICTIM])
    check_mlflow(root, mlflow)


def test_the_time_limit_hands_back_requeues_and_goes_on(root: Path, mlflow: Tracking) -> None:
    drill = submit(told(root), SITE.model_copy(update={"minutes": 1}))  # SLURM sends the signal up to a minute early, so at any time
    drill.wait_until_reached()
    wait_for(lambda: drill.store.status(VICTIM).state is State.PREEMPTED or times_begun(root) > 1, what="the signal before the limit")
    drill.open()
    assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(root, again=POINTS)
    check_mlflow(root, mlflow)


def test_a_node_that_goes_down(drill: Drill, mlflow: Tracking) -> None:
    process = victims_process(drill.root)
    wait_for_the_others(drill)  # the node may have the other worker too
    node, on_it = environment(process)["SLURMD_NODENAME"], task_of(process)
    try:
        ask("scontrol", "update", f"nodename={node}", "state=down", "reason=drill")
        kill_9(on_it)  # its power is gone as well
        drill.open()
        assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]  # the task of the dead node was queued again
    finally:  # it may have come back by itself
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False, timeout=PATIENCE, capture_output=True)
    check_once(drill.root, again=[VICTIM])
    check_mlflow(drill.root, mlflow)


@contextmanager
def no_controller(cluster: Path) -> Iterator[None]:
    """SLURM's controller is away."""
    pid = int((cluster / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)  # not SIGKILL: in the first seconds it would forget that it had started these jobs
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the controller's end")
    try:
        yield
    finally:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # a pipe would stay open in the daemon
        subprocess.run(["slurmctld", "-f", str(cluster / "slurm.conf")], check=True, timeout=PATIENCE, **quiet)
        wait_for(
            lambda: "UP" in subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False).stdout, what="the controller"
        )


def test_a_controller_that_goes_and_comes_back_in_mid_sweep(drill: Drill, cluster: Path, mlflow: Tracking) -> None:
    with no_controller(cluster):
        wait_for_the_others(drill)
        with pytest.raises(ValueError, match="squeue"):
            drill.states()
    drill.open()
    assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(drill.root)
    check_mlflow(drill.root, mlflow)


def test_a_worker_that_is_preempted_while_the_controller_is_away_is_queued_again_when_it_is_back(
    root: Path, cluster: Path, mlflow: Tracking
) -> None:
    drill = submit(told(root), packs=1)  # a second worker would go on with what the first hands back
    drill.wait_until_reached()
    logs = drill.told.folder / "logs" / "all"
    with no_controller(cluster):
        os.kill(victims_process(drill.root), signal.SIGUSR2)
        wait_for(
            lambda: any("does not take this job back now" in log.read_text() for log in logs.glob("*_log.out")), what="the first refusal"
        )
        assert drill.store.status(VICTIM).state is State.PREEMPTED
    drill.open()
    assert drill.wait_for_end() == ["COMPLETED"]
    check_once(root, again=[VICTIM])
    check_mlflow(root, mlflow)


@pytest.mark.parametrize(("number", "end"), [("USR2", "COMPLETED"), ("TERM", "FAILED")])
def test_a_signal_that_comes_before_the_worker_listens_is_obeyed_when_it_does(
    root: Path, tmp_path: Path, mlflow: Tracking, number: str, end: str
) -> None:
    slow = SITE.model_copy(update={"setup": (*SITE.setup, f"export TOY_START={tmp_path}")})
    drill = submit(told(root), slow, packs=1)
    wait_for((tmp_path / "starting").exists, what="the start of Python")
    ask("scancel", f"--signal={number}", *drill.tasks)
    assert toys.notes(root) == []
    drill.open()
    (tmp_path / "begin").touch()
    assert drill.wait_for_end() == [end]  # preempted: it was queued again, and went on; told to end: exit code 130
    if number == "USR2":
        check_once(root)
        check_mlflow(root, mlflow)
    else:
        assert toys.notes(root) == []


# ----------------------------------------------------------------------------------------------------------- what people do


def cpt_lab(verb: str, root: Path) -> subprocess.Popen[str]:
    """`python -m cpt_lab VERB toys`, begun."""
    command = [sys.executable, "-m", "cpt_lab", verb, "toys", f"results={root}"]
    return subprocess.Popen(command, cwd=toys.TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it printed."""
    text, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, text


def test_cancel_ends_the_jobs_and_wait_says_that_something_has_no_result(drill: Drill, mlflow: Tracking) -> None:
    code, text = said(cpt_lab("cancel", drill.root))
    assert code == 0, text
    assert "study toys: 2 jobs and 0 workers told to end" in text
    assert set(drill.wait_for_end()) <= {"CANCELLED", "COMPLETED"}
    assert drill.store.status(VICTIM).state is State.CANCELLED
    code, text = said(cpt_lab("wait", drill.root))
    assert (code, "cancelled" in text) == (1, True)
    assert relaunch(drill.root).wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(drill.root, again=POINTS)  # the other worker may have been in the middle of one
    check_mlflow(drill.root, mlflow)


def test_cancel_of_jobs_that_have_not_begun_takes_them_from_the_queue(root: Path) -> None:
    drill = submit(told(root), SITE.model_copy(update={"extra": {"hold": True}}))
    code, text = said(cpt_lab("cancel", root))
    assert (code, drill.wait_for_end()) == (0, ["CANCELLED", "CANCELLED"])
    assert "2 jobs and 0 workers told to end" in text
    assert {drill.store.status(spec).state for spec in POINTS} == {State.CANCELLED}
    assert said(cpt_lab("wait", root))[0] == 1


def test_wait_ends_with_the_study(drill: Drill) -> None:
    waiting = cpt_lab("wait", drill.root)
    assert waiting.stdout is not None
    assert f"study toys: {len(POINTS)} points: " in waiting.stdout.readline()
    assert waiting.poll() is None
    drill.open()
    code, text = said(waiting)
    assert code == 0
    assert text.splitlines()[-1] == f"study toys: {len(POINTS)} points: {len(POINTS)} done"
    assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]


def test_two_launches_of_one_study_at_once(root: Path, mlflow: Tracking) -> None:
    first, second = told(root), told(root)
    begun = [submit(launch) for launch in (first, second)]
    begun[0].wait_until_reached()
    begun[0].open()
    assert [one.wait_for_end() for one in begun] == [["COMPLETED"] * 2] * 2
    check_once(root)
    check_mlflow(root, mlflow)


def test_code_that_is_edited_while_jobs_wait(root: Path, tmp_path: Path, mlflow: Tracking) -> None:
    copy = tmp_path / "checkout"
    for name in ("cpt_lab", "conf", "launchers", "analysis"):
        shutil.copytree(toys.TESTS.parent / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    place = {**os.environ, "PYTHONPATH": f"{copy}:{toys.TESTS}"}
    command = [sys.executable, "-c", LAUNCH_ELSEWHERE, str(root), str(toys.TESTS)]
    launched = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE, env=place, cwd=tmp_path)
    assert launched.returncode == 0, launched.stderr
    folder, *tasks = launched.stdout.split()
    for name in ("worker.py", "specs/base.py", "store.py"):
        (copy / "cpt_lab" / name).write_text("raise SystemExit('edited')\n")
    ask("scontrol", "release", tasks[0].split("_")[0])
    drill = Drill(load(Path(folder)), tuple(tasks))
    drill.open()
    assert drill.wait_for_end() == ["COMPLETED", "COMPLETED"]
    check_once(root)
    check_mlflow(root, mlflow)
