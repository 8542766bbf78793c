"""Submission to SLURM: what is asked for, and, on a real one-node SLURM, what then happens."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cpt_lab import slurm
from cpt_lab.site import Site
from cpt_lab.slurm import ENDED, Stage, batch_parameters, cancel, chunks, job_states, lanes, submit, task_command
from devcluster_fixture import running_devcluster
from processes import PATIENCE, wait_for

SITES = sorted((Path(__file__).parents[1] / "conf" / "site").glob("*.yaml"))
DEV = Site(name="devcluster", partition="dev", minutes=10, signal_seconds=30)
MAX_ARRAY_SIZE = 4

# A worker that says where it is and what it sees; the name of its stage says how it ends.
FAKE_WORKER = """
import json, os, pathlib, signal, sys, time
import cpt_lab
launch, stage, pack = pathlib.Path(sys.argv[1]), sys.argv[3], int(sys.argv[5])
said = {"argv": sys.argv[1:], "code": str(pathlib.Path(cpt_lab.__file__).parents[1]), "version": VERSION, "cwd": os.getcwd(),
        "environment": dict(os.environ), "before": sorted(path.name for path in launch.glob("*.json"))}
def write(name):
    new = launch / f"{name}.{pack}.new"  # two packs may say the same thing at once
    new.write_text(json.dumps(said))
    os.replace(new, launch / (name + ".json"))
if stage == "signalled":
    def stop(number, frame):
        write(signal.Signals(number).name)
        sys.exit(75)
    signal.signal(signal.SIGUSR2, stop)
    signal.signal(signal.SIGTERM, stop)
    write("waiting")
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR2, signal.SIGTERM))  # a task begins with both blocked
if stage == "signalled":
    while True:
        time.sleep(0.1)
if stage == "held":
    while not (launch / "go").exists():
        time.sleep(0.1)
write(f"{stage}-{pack}")
sys.exit(3 if stage == "half" and pack == 1 else 0)
"""


def make_launch(folder: Path, version: str = "first") -> Path:
    launch = folder / "launches" / "a launch"  # a blank: paths are quoted everywhere
    package = launch / "code" / "cpt_lab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "worker.py").write_text(FAKE_WORKER.replace("VERSION", repr(version)))
    return launch


def said(launch: Path, name: str) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((launch / f"{name}.json").read_text())
    return text


def wait_for_jobs(jobs: dict[str, str]) -> dict[str, str]:
    wait_for(lambda: set(job_states(jobs.values()).values()) <= ENDED, what=f"the end of {jobs}")
    return job_states(jobs.values())


# ------------------------------------------------------------------------------------------------ what is asked for


@given(packs=st.integers(1, 3000), largest=st.integers(0, 1001))
def test_chunks_hold_every_pack_once_in_order_and_none_is_empty_or_too_large(packs: int, largest: int) -> None:
    arrays = chunks(packs, largest)
    assert [pack for array in arrays for pack in array] == list(range(packs))
    assert all(1 <= len(array) <= max(1, largest) for array in arrays)


@given(arrays=st.integers(1, 40), largest=st.integers(1, 1001), most=st.integers(1, 5000))
def test_the_lanes_of_a_stage_run_no_more_tasks_at_a_time_than_the_limit_and_as_many_as_arrays_can(
    arrays: int, largest: int, most: int
) -> None:
    shares = lanes(arrays, largest, most)
    assert 1 <= len(shares) <= arrays
    assert all(share is not None and share >= 1 for share in shares)
    assert sum(filter(None, shares)) == most
    assert len(shares) == arrays or max(filter(None, shares)) <= largest
    assert lanes(arrays, largest, None) == [None] * arrays


@pytest.mark.parametrize(
    ("most", "planned"),
    [
        (1, [(["1"], 1), (["1", "2"], 1), (["1", "3"], 1), (["1", "4"], 1)]),
        (3, [(["1"], 3), (["1", "2"], 3), (["1", "3"], 3), (["1", "4"], 3)]),
        (7, [(["1"], 4), (["1"], 3), (["1", "2"], 4), (["1", "3"], 3)]),
        (None, [(["1"], None)] * 4),
    ],
)
def test_arrays_of_one_stage_take_turns_so_that_together_they_keep_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int | None, planned: list[tuple[list[str], int | None]]
) -> None:
    asked: list[tuple[list[str], int | None]] = []

    def parameters(*_: object, after: list[str], parallel: int | None) -> dict[str, Any]:
        asked.append((after, parallel))
        return {}

    monkeypatch.setattr(slurm, "check", lambda *_: None)
    monkeypatch.setattr(slurm, "_max_array_size", lambda: MAX_ARRAY_SIZE)
    monkeypatch.setattr(slurm, "batch_parameters", parameters)
    monkeypatch.setattr(slurm, "_submit_array", lambda *_: [str(len(asked))])
    stages = [Stage("first", packs=1, minutes=5), Stage("rank", packs=3 * MAX_ARRAY_SIZE + 1, minutes=5, needs=("first",))]
    submit(tmp_path, stages, DEV.model_copy(update={"max_parallel": most}))
    assert asked[1:] == planned


def test_a_task_is_the_worker_of_its_launch_stage_and_pack() -> None:
    command = task_command(Path("/r/launches/x"), Stage("evaluate", packs=3, minutes=5), 2, "/venv/bin/python")
    assert command == ["/venv/bin/python", "-m", "cpt_lab.worker", "/r/launches/x", "--stage", "evaluate", "--pack", "2"]


def test_a_task_asks_for_what_its_stage_and_its_site_say() -> None:
    site = Site(name="big", partition="gpu", account="me", qos="long", gpus_per_node=8, cpus_per_task=12, memory_gb=1.5, minutes=60)
    asked = batch_parameters(Path("/r/x"), Stage("train", packs=7, minutes=30, gpus=4), site)
    expected = {"partition": "gpu", "account": "me", "qos": "long", "time": 30, "mem": "1536M", "gpus_per_node": 4, "cpus_per_task": 12}
    assert {name: asked[name] for name in expected} == expected
    assert asked["job_name"] == "x.train"
    assert asked["srun_args"] == ["--cpus-per-task=12"]
    assert asked["array_parallelism"] == 7
    assert asked["dependency"] is None


def test_what_a_site_leaves_open_is_left_to_the_cluster() -> None:
    asked = batch_parameters(Path("/r/x"), Stage("rank", packs=1, minutes=30), Site(name="plain"))
    assert {"partition", "account", "qos", "mem", "gpus_per_node"}.isdisjoint(asked)


def test_the_time_limit_is_the_stages_but_at_most_the_sites() -> None:
    site = Site(name="plain", minutes=60)
    assert batch_parameters(Path("/r/x"), Stage("a", packs=1, minutes=59), site)["time"] == 59
    assert batch_parameters(Path("/r/x"), Stage("a", packs=1, minutes=61), site)["time"] == 60


def test_the_signal_comes_in_the_second_half_of_the_time_at_the_earliest() -> None:
    site = Site(name="plain", minutes=60, signal_seconds=300)
    assert batch_parameters(Path("/r/x"), Stage("a", packs=1, minutes=60), site)["signal_delay_s"] == 300
    assert batch_parameters(Path("/r/x"), Stage("a", packs=1, minutes=2), site)["signal_delay_s"] == 60


def test_a_stage_starts_when_all_arrays_it_needs_have_ended_however_they_ended() -> None:
    asked = batch_parameters(Path("/r/x"), Stage("b", packs=1, minutes=1, needs=("a",)), Site(name="plain"), after=["12", "13"])
    assert asked["dependency"] == "afterany:12:13"


def test_the_snapshot_is_set_as_path_and_folder_after_the_lines_of_the_site() -> None:
    site = Site(name="plain", setup=("module load x",))
    setup = batch_parameters(Path("/r/a launch"), Stage("a", packs=1, minutes=1), site)["setup"]
    assert setup == ["module load x", "export PYTHONPATH='/r/a launch/code:/r/a launch/code/launchers'", "cd '/r/a launch/code'"]


def test_further_options_reach_sbatch_under_its_own_names_and_tasks_can_be_requeued_unless_the_site_forbids_it() -> None:
    stage = Stage("a", packs=1, minutes=1)
    site = Site(name="plain", extra={"mail_type": "FAIL", "exclusive": True, "hold": False})
    assert batch_parameters(Path("/r/x"), stage, site)["additional_parameters"] == {"requeue": True, "mail-type": "FAIL", "exclusive": True}
    forbids = Site(name="plain", extra={"no-requeue": True})
    assert batch_parameters(Path("/r/x"), stage, forbids)["additional_parameters"] == {"no-requeue": True}


@pytest.mark.parametrize(
    ("option", "field"), [("time", "site.minutes"), ("cpus_per_task", "site.cpus_per_task"), ("dependency", "launcher sets itself")]
)
def test_an_option_that_has_another_place_is_refused_with_that_place(option: str, field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Site(name="plain", extra={option: "1"})


def test_a_relative_python_is_refused() -> None:
    with pytest.raises(ValidationError, match="give the whole path"):
        Site(name="plain", python=".venv/bin/python")


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_every_site_file_is_a_site_of_its_own_name(path: Path) -> None:
    assert Site.model_validate(yaml.safe_load(path.read_text())).name == path.stem


@pytest.mark.parametrize(("packs", "minutes", "gpus"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_a_stage_without_work_or_time_is_refused(packs: int, minutes: int, gpus: int) -> None:
    with pytest.raises(ValueError, match="at least 1, 1 and 0"):
        Stage("a", packs=packs, minutes=minutes, gpus=gpus)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([Stage("a", 1, 1, needs=("b",)), Stage("b", 1, 1)], "needs 'b', which is not among the stages before it: the order here is a, b"),
        ([Stage("a", 1, 1), Stage("a", 1, 1)], "stage a stands twice"),
        ([Stage("a", 1, 1, gpus=1)], "needs 1 GPUs and site devcluster gives a task at most 0"),
    ],
)
def test_stages_that_cannot_be_run_are_refused_before_slurm_is_asked(tmp_path: Path, stages: list[Stage], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        submit(tmp_path, stages, DEV)


def test_a_machine_without_slurm_is_told_what_it_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"has no sinfo: log in to a node of a SLURM cluster, .* or stay .* hydra/launcher=local"):
        submit(tmp_path, [Stage("a", 1, 1)], DEV)
    with pytest.raises(ValueError, match="has no squeue"):
        job_states(["1"])


def test_states_of_no_jobs_are_known_without_asking_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states([]) == {}


def fake_command(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_states_come_from_the_queue_first_and_from_accounting_for_what_it_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_command(tmp_path, "squeue", "echo '12_1|RUNNING'; echo '12_2|PENDING'; echo '13|COMPLETED'")
    fake_command(tmp_path, "sacct", "echo '12_0|CANCELLED by 0'; echo '12_1|PENDING'; echo '12_[2-3]|PENDING'; echo '14|NODE_FAIL'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states(["12", "14"]) == {"12_0": "CANCELLED", "12_1": "RUNNING", "12_2": "PENDING", "14": "NODE_FAIL"}
    assert job_states(["12_1,13"]) == {"12_1": "RUNNING", "13": "COMPLETED"}


def test_the_tasks_of_an_array_that_was_cancelled_before_it_began_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(tmp_path, "squeue", "echo '18|CANCELLED'")  # it never came to have tasks
    monkeypatch.setenv("PATH", str(tmp_path))
    assert job_states(["18_0", "18_1"]) == {"18_0": "CANCELLED", "18_1": "CANCELLED"}
    assert job_states(["18"]) == {"18": "CANCELLED"}


def test_a_controller_that_is_down_is_not_mistaken_for_jobs_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="Unable to contact slurm controller"):
        job_states(["12"])


# ---------------------------------------------------------------------------------------------------- what happens


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with running_devcluster("--max-array-size", str(MAX_ARRAY_SIZE)) as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
class TestOnARealCluster:
    def test_a_later_stage_runs_after_every_task_of_the_one_it_needs_though_one_failed(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        stages = [Stage("half", packs=3, minutes=5), Stage("after", packs=1, minutes=5, needs=("half",))]
        jobs = submit(launch, stages, DEV)
        recorded = json.loads((launch / "jobs.json").read_text())
        half, after = jobs["half"], jobs["after"]
        assert recorded["half"] == {"job": half, "tasks": 3, "ids": [f"{half}_0", f"{half}_1", f"{half}_2"]}
        assert recorded["after"] == {"job": after, "tasks": 1, "ids": [after]}
        states = wait_for_jobs(jobs)
        assert states == {f"{half}_0": "COMPLETED", f"{half}_1": "FAILED", f"{half}_2": "COMPLETED", after: "COMPLETED"}
        assert {"half-0.json", "half-1.json", "half-2.json"} <= set(said(launch, "after-0")["before"])

    def test_the_exit_code_of_the_worker_is_the_one_slurm_sees(self, tmp_path: Path) -> None:
        jobs = submit(make_launch(tmp_path), [Stage("half", packs=2, minutes=5)], DEV)
        wait_for_jobs(jobs)
        shown = subprocess.run(
            ["scontrol", "show", "job", f"{jobs['half']}_1"], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
        assert "JobState=FAILED" in shown.stdout
        assert "ExitCode=3:0" in shown.stdout

    def test_tasks_run_the_snapshot_from_the_snapshot_and_log_into_the_launch(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        jobs = submit(launch, [Stage("rank", packs=2, minutes=5)], DEV)
        wait_for_jobs(jobs)
        heard = said(launch, "rank-1")
        assert heard["argv"] == [str(launch), "--stage", "rank", "--pack", "1"]
        assert heard["code"] == heard["cwd"] == str(launch / "code")
        assert heard["environment"]["PYTHONPATH"] == f"{launch}/code:{launch}/code/launchers"
        assert {f"{jobs['rank']}_{task}_0_log.out" for task in (0, 1)} <= {path.name for path in (launch / "logs" / "rank").iterdir()}

    def test_editing_the_source_after_submission_does_not_change_what_runs(self, tmp_path: Path) -> None:
        source = make_launch(tmp_path / "source", version="as submitted")
        launch = tmp_path / "launch"
        launch.mkdir()
        subprocess.run(["cp", "-r", str(source / "code"), str(launch / "code")], check=True, timeout=PATIENCE)
        jobs = submit(launch, [Stage("held", packs=2, minutes=5)], DEV)
        (source / "code" / "cpt_lab" / "worker.py").write_text("raise SystemExit(1)")
        (launch / "go").touch()
        assert set(wait_for_jobs(jobs).values()) == {"COMPLETED"}
        assert said(launch, "held-1")["version"] == "as submitted"

    def test_nothing_of_a_surrounding_job_reaches_the_tasks_and_the_caller_keeps_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        surrounding = {"SLURM_NTASKS": "7", "SBATCH_PARTITION": "nowhere", "SRUN_DEBUG": "4", "PMI_RANK": "3", "SLURM_FROM_OUTSIDE": "1"}
        for name, value in surrounding.items():
            monkeypatch.setenv(name, value)
        launch = make_launch(tmp_path)
        wait_for_jobs(submit(launch, [Stage("rank", packs=2, minutes=5)], DEV))
        environment = said(launch, "rank-0")["environment"]
        assert {"SBATCH_PARTITION", "SLURM_FROM_OUTSIDE"}.isdisjoint(environment)
        assert environment["SLURM_NTASKS"] == "1"
        assert environment["SRUN_DEBUG"] != "4"  # srun sets its own
        assert environment.get("PMI_RANK") != "3"
        assert {name: os.environ[name] for name in surrounding} == surrounding

    def test_a_task_has_the_cpus_of_its_site_in_its_step(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        cpus = os.cpu_count() or 1
        wait_for_jobs(submit(launch, [Stage("rank", packs=1, minutes=5)], DEV.model_copy(update={"cpus_per_task": cpus})))
        assert said(launch, "rank-0")["environment"]["SLURM_CPUS_PER_TASK"] == str(cpus)

    def test_more_packs_than_an_array_can_hold_become_several_arrays(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        packs = 2 * MAX_ARRAY_SIZE + 1
        stages = [Stage("rank", packs=packs, minutes=5), Stage("after", packs=1, minutes=5, needs=("rank",))]
        jobs = submit(launch, stages, DEV)
        assert len(jobs["rank"].split(",")) == 3
        states = wait_for_jobs(jobs)
        ids = json.loads((launch / "jobs.json").read_text())["rank"]["ids"]
        assert [states[task] for task in ids] == ["COMPLETED"] * packs
        assert set(said(launch, "after-0")["before"]) >= {f"rank-{pack}.json" for pack in range(packs)}

    def test_no_more_tasks_run_at_a_time_than_the_site_wants_though_they_are_of_several_arrays(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        packs = MAX_ARRAY_SIZE + 2
        jobs = submit(launch, [Stage("held", packs=packs, minutes=5)], DEV.model_copy(update={"max_parallel": 1}))
        first = json.loads((launch / "jobs.json").read_text())["held"]["ids"][0]
        wait_for(lambda: job_states(jobs.values()).get(first) == "RUNNING", what="the start of the first task")
        states = list(job_states(jobs.values()).values())
        assert (states.count("RUNNING"), states.count("PENDING")) == (1, packs - 1)
        (launch / "go").touch()
        assert set(wait_for_jobs(jobs).values()) == {"COMPLETED"}
        ended = [{name for name in said(launch, f"held-{pack}")["before"] if name.startswith("held")} for pack in range(packs)]
        assert sorted(map(len, ended)) == list(range(packs))  # each began when those before it had ended

    def test_usr2_reaches_the_worker_before_the_time_limit(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        jobs = submit(launch, [Stage("signalled", packs=1, minutes=1)], DEV)
        states = wait_for_jobs(jobs)
        assert (launch / "SIGUSR2.json").exists()
        assert states == {jobs["signalled"]: "FAILED"}  # it left by itself with exit code 75; TIMEOUT would mean it was killed

    def test_a_cancelled_worker_is_told_by_sigterm(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        jobs = submit(launch, [Stage("signalled", packs=2, minutes=5)], DEV)
        wait_for((launch / "waiting.json").exists, what="the start of the worker")
        cancel(jobs.values())
        wait_for((launch / "SIGTERM.json").exists, what="the signal")
        assert set(wait_for_jobs(jobs).values()) == {"CANCELLED"}

    def test_cancelled_tasks_are_cancelled_and_the_stage_after_them_goes_on(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        stages = [Stage("held", packs=2, minutes=5), Stage("after", packs=1, minutes=5, needs=("held",))]
        jobs = submit(launch, stages, DEV)
        cancel([jobs["held"]])
        states = wait_for_jobs(jobs)
        assert states == {f"{jobs['held']}_0": "CANCELLED", f"{jobs['held']}_1": "CANCELLED", jobs["after"]: "COMPLETED"}

    def test_an_interrupted_submission_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        first, second = Stage("held", packs=2, minutes=5), Stage("after", packs=1, minutes=5, needs=("held",))
        before = submit(launch, [first], DEV)
        jobs = submit(launch, [first, second], DEV)
        assert jobs["held"] == before["held"]
        (launch / "go").touch()
        assert set(wait_for_jobs(jobs).values()) == {"COMPLETED"}
        assert submit(launch, [first, second], DEV) == jobs

    def test_a_refused_request_leaves_nothing_queued_and_names_what_there_is(self, tmp_path: Path) -> None:
        launch = make_launch(tmp_path)
        stages = [Stage("held", packs=2, minutes=5)]
        with pytest.raises(ValueError, match=r"refuses stage held: .*partition.* \(there are: dev, spare\); correct the site's file"):
            submit(launch, stages, DEV.model_copy(update={"partition": "nowhere"}))
        with pytest.raises(ValueError, match="unrecognized option '--nonsense=1'"):
            submit(launch, stages, DEV.model_copy(update={"extra": {"nonsense": "1"}}))
        assert not (launch / "jobs.json").exists()

    def test_a_refusal_in_the_middle_cancels_what_was_submitted_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_command(
            tmp_path,
            "sbatch",
            """grep -qs 'launch.after' "$1" && echo 'sbatch: error: too many jobs' >&2 && exit 1
        exec /usr/bin/sbatch "$@" """,
        )
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        launch = make_launch(tmp_path)
        held = submit(launch, [Stage("held", packs=2, minutes=5)], DEV)
        with pytest.raises(ValueError, match="SLURM refuses stage after: too many jobs; correct"):
            submit(launch, [Stage("held", packs=2, minutes=5), Stage("after", packs=1, minutes=5, needs=("held",))], DEV)
        assert set(wait_for_jobs(held).values()) == {"CANCELLED"}
        assert not (launch / "jobs.json").exists()

    def test_jobs_that_slurm_does_not_know_have_no_state(self) -> None:
        assert job_states(["4000000"]) == {}
