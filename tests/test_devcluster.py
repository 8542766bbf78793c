"""launchers/devcluster: a real SLURM comes up, does what launches rely on, and goes away without a trace."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster_fixture import DEVCLUSTER, devcluster, processes_of, running_devcluster
from processes import PATIENCE, wait_for


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with running_devcluster() as folder:
        yield folder


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()


def batch(folder: Path, script: str, *options: str) -> str:
    return ask("sbatch", "--parsable", "--time=5", f"--output={folder}/%j.out", *options, f"--wrap={script}")


def state(job: str) -> str:
    return ask("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")


def test_a_verb_that_does_not_exist_is_refused_with_the_list_of_verbs() -> None:
    answer = devcluster("start")
    assert answer.returncode == 2
    assert "'up', 'down', 'status', 'env'" in answer.stderr


def test_env_and_status_of_a_cluster_that_does_not_run_say_how_to_start_it(tmp_path: Path) -> None:
    for verb in ("env", "status"):
        answer = devcluster(verb, str(tmp_path))
        assert answer.returncode == 2
        assert answer.stdout == ""
        assert answer.stderr == f"devcluster: not running in {tmp_path}: start it with launchers/devcluster up\n"


def test_down_of_a_cluster_that_does_not_run_is_no_error(tmp_path: Path) -> None:
    assert devcluster("down", str(tmp_path)).returncode == 0


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    script = DEVCLUSTER.read_text().replace('SYSTEM_PATH = "', f'SYSTEM_PATH = "{tmp_path}" or "')
    answer = subprocess.run(
        [sys.executable, "-c", script, "up", str(tmp_path)], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert answer.returncode == 2
    assert "slurmctld, slurmd" in answer.stderr
    assert "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge" in answer.stderr


@pytest.mark.slow
@pytest.mark.slurm
def test_who_is_not_root_is_told_so(tmp_path: Path) -> None:
    script = DEVCLUSTER.read_text().replace("os.geteuid()", "1000")
    answer = subprocess.run(
        [sys.executable, "-c", script, "up", str(tmp_path)], capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert answer.returncode == 2
    assert "must be root" in answer.stderr


@pytest.mark.slow
@pytest.mark.slurm
def test_what_up_prints_points_a_shell_to_the_cluster_and_a_second_up_prints_the_same(cluster: Path) -> None:
    again = devcluster("up", str(cluster))
    assert again.returncode == 0
    assert "already running" in again.stderr
    assert again.stdout == devcluster("env", str(cluster)).stdout
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    shell = subprocess.run(
        ["bash", "-c", f"{again.stdout}\nsinfo --noheader --format=%T"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert shell.stdout.strip() == "idle"


@pytest.mark.slow
@pytest.mark.slurm
def test_small_jobs_share_the_node(cluster: Path) -> None:
    meeting = "touch {mine}; until [ -e {other} ]; do sleep 0.1; done"
    first, second = cluster / "first", cluster / "second"
    jobs = [
        batch(cluster, meeting.format(mine=first, other=second)),
        batch(cluster, meeting.format(mine=second, other=first)),
    ]
    wait_for(lambda: {state(job) for job in jobs} == {"COMPLETED"}, what="both jobs meeting")


@pytest.mark.slow
@pytest.mark.slurm
def test_arrays_and_afterok_wait_and_a_failed_need_keeps_afterok_waiting_but_not_afterany(cluster: Path) -> None:
    array = batch(cluster, "exit $((SLURM_ARRAY_TASK_ID == 1))", "--array=0-2")
    good = batch(cluster, "true", f"--dependency=afterok:{array}_0")
    never = batch(cluster, "true", f"--dependency=afterok:{array}")
    always = batch(cluster, "true", f"--dependency=afterany:{array}")
    wait_for(lambda: (state(good), state(always)) == ("COMPLETED", "COMPLETED"), what="the end of the dependants")
    assert [state(f"{array}_{task}") for task in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert state(never) == "PENDING"
    subprocess.run(["scancel", never], check=True, timeout=PATIENCE)


@pytest.mark.slow
@pytest.mark.slurm
def test_a_requeued_job_runs_again(cluster: Path) -> None:
    flag = cluster / "requeued"
    job = batch(cluster, f"if [ -e {flag} ]; then exit 0; fi; touch {flag}; scontrol requeue $SLURM_JOB_ID; sleep 600")
    wait_for(lambda: flag.exists(), what="the first run")
    wait_for(lambda: state(job) == "COMPLETED", what="the second run")


@pytest.mark.slow
@pytest.mark.slurm
def test_down_ends_a_job_that_ignores_signals_and_leaves_no_process() -> None:
    with running_devcluster() as folder:
        ready = folder / "ready"
        batch(folder, f"trap '' TERM USR2 INT; touch {ready}; while true; do sleep 1; done")
        wait_for(ready.exists, what="the start of the stubborn job")
        assert "slurmd" in processes_of(folder)
        assert devcluster("down", str(folder)).returncode == 0
        wait_for(lambda: processes_of(folder) == [], what="the end of all its processes")
        assert devcluster("status", str(folder)).returncode == 2


@pytest.mark.slow
@pytest.mark.slurm
def test_up_starts_again_what_died_and_goes_on_counting_job_ids() -> None:
    with running_devcluster() as folder:
        before = batch(folder, "true")
        wait_for(lambda: state(before) == "COMPLETED", what="the end of the first job")
        ended = time.time_ns()
        saved = folder / "state" / "job_state"
        wait_for(lambda: saved.exists() and saved.stat().st_mtime_ns > ended, what="the controller's saving of it")
        os.kill(int((folder / "run" / "slurmctld.pid").read_text()), 9)
        wait_for(lambda: devcluster("status", str(folder)).returncode == 2, what="the death of slurmctld")
        assert devcluster("up", str(folder)).returncode == 0
        after = batch(folder, "true")
        assert int(after) > int(before)
        wait_for(lambda: state(after) == "COMPLETED", what="the end of the second job")
