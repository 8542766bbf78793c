"""Workers as real processes: everything once, nothing lost, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

import toys
from cpt_lab import launches, slurm, study, worker
from cpt_lab.build import Stopped
from cpt_lab.execution import Execution
from cpt_lab.launch import Launch, environment
from cpt_lab.specs import Evaluation, Patched, Spec, key
from cpt_lab.store import State, Store
from cpt_lab.worker import FAILED, NO_ROOM, PREEMPTED, STOPPED
from long_tables import rest_slow
from processes import hear, kill, start, wait_for
from spec_cases import BASE, DELTA_NORM, HUB_TOKENIZER, INST, MATH, PROTOCOL, RANDOM, SPECTRA, TEXT, TOKENS, TUNED, rewound, rewound_heads

LONG = 60.0


def scored(checkpoint: Patched, seed: int = 0) -> Evaluation:
    return Evaluation(checkpoint=checkpoint, protocol=PROTOCOL.but(seed=seed))


POINTS = tuple(scored(rewound(ranking, fraction)) for ranking in (RANDOM, DELTA_NORM) for fraction in (0.0, 0.25, 0.5, 1.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def codes(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Exit codes, waited for."""
    ended = []
    for process in processes:
        process.communicate(timeout=LONG)
        ended.append(process.returncode)
    return ended


def run(launch: Launch, count: int = 1, **how: str) -> list[int]:
    with toys.workers(launch, count, **how) as processes:
        return codes(processes)


def attempts(root: Path) -> dict[str, int]:
    """key -> how often its build was begun, by the states in the store."""
    found = {path.parent.name: json.loads(path.read_text()) for path in root.glob("*/*/status.json")}
    return {name: status["attempts"] for name, status in found.items()}


def begun(root: Path) -> dict[str, int]:
    """key -> how often its build was begun, by the builders' own notes."""
    names = [name for _, name in toys.notes(root)]
    return {name: names.count(name) for name in names}


def states(store: Store, *specs: Spec) -> list[State]:
    return [store.status(spec).state for spec in specs]


def wait_for_hanging(store: Store, spec: Spec) -> None:
    wait_for(lambda: (store.folder(spec) / "hanging").exists(), what=f"the build of {key(spec)}", seconds=LONG)


# ----------------------------------------------------------------------------------------------------------- all goes well


def test_two_workers_build_everything_and_each_thing_once(root: Path) -> None:
    launch = toys.told(root, POINTS)
    assert run(launch, 2) == [0, 0]
    results = {key(scored(TUNED)), *(key(scored(rewound_heads(*toys.ORDER[:count]))) for count in (2, 4, 8))}  # type: ignore[arg-type]
    assert {path.name for path in (root / "evaluations").iterdir()} == results
    assert set(begun(root).values()) == set(attempts(root).values()) == {1}
    assert set(begun(root)) == set(attempts(root))


def test_points_of_different_rankings_that_choose_the_same_heads_share_one_result(root: Path) -> None:
    launch = toys.told(root, [scored(rewound(ranking)) for ranking in (RANDOM, DELTA_NORM)])
    assert run(launch) == [0]
    assert [path.name for path in (root / "evaluations").iterdir()] == [key(scored(rewound_heads(*toys.ORDER[:2])))]


@pytest.mark.parametrize(("packs", "order"), rest_slow([(1, (0, 2, 4, 1, 3, 5)), (2, (0, 2, 4, 5, 3, 1))], fast=1))
def test_a_worker_keeps_to_the_order_of_its_pack_and_then_helps_from_the_end_of_the_others(
    root: Path, packs: int, order: tuple[int, ...]
) -> None:
    specs = [scored(rewound_heads(*toys.ORDER[: index + 1]), seed) for index in range(3) for seed in (0, 1)]
    launch = toys.told(root, specs, packs=packs)
    assert run(launch) == [0]
    built = [name for _, name in toys.notes(root) if name in {key(spec) for spec in specs}]
    assert built == [key(specs[index]) for index in order]  # those of seed 0 together, then those of seed 1


@pytest.mark.slow
def test_patched_checkpoints_can_be_the_points(root: Path) -> None:
    launch = toys.told(root, [rewound(RANDOM), rewound_heads((0, 0)), rewound_heads((0, 1))])
    assert run(launch, 2) == [0, 0]
    assert len(list((root / "materialized").glob("*/DONE"))) == 3


@pytest.mark.slow
def test_a_launch_of_what_is_done_by_now_builds_nothing(root: Path) -> None:
    first, second = toys.told(root, [TOKENS]), toys.told(root, [TOKENS])
    assert run(first) == [0]
    before = toys.notes(root)
    assert run(second) == [0]
    assert toys.notes(root) == before


def test_a_worker_of_one_stage_builds_that_stage_only(root: Path) -> None:
    launch = toys.told(root, [scored(rewound(RANDOM))])
    assert run(launch, stage="rank") == [0]
    assert states(launch.store(), RANDOM, TUNED) == [State.DONE, State.QUEUED]


# ---------------------------------------------------------------------------------------------------------------- failures


def test_a_failing_step_blocks_what_needs_it_with_the_reason_and_touches_nothing_else(root: Path) -> None:
    launch = toys.told(root, [*POINTS, INST])
    store = launch.store()
    toys.write_script(root, {key(SPECTRA): "fail"})
    assert run(launch, 2) == [FAILED, FAILED]
    assert store.status(SPECTRA).message == "told to fail"
    assert states(store, DELTA_NORM, RANDOM, INST, TUNED) == [State.BLOCKED, State.DONE, State.DONE, State.DONE]
    assert store.status(DELTA_NORM).message == f"{key(SPECTRA)} failed: told to fail"
    done = [scored(TUNED), *(scored(rewound_heads(*toys.ORDER[:count])) for count in (2, 4, 8))]  # type: ignore[list-item]
    assert set(states(store, *done)) == {State.DONE}
    waiting = study.point_status(store, scored(rewound(DELTA_NORM)))
    assert (waiting.state, waiting.message) == (
        State.BLOCKED,
        f"{key(DELTA_NORM)} blocked: {key(SPECTRA)} failed: told to fail",
    )


@pytest.mark.slow
def test_a_failed_step_is_tried_again_by_the_next_launch_and_not_by_this_one(root: Path) -> None:
    toys.write_script(root, {key(TEXT): "fail"})
    launch = toys.told(root, [TOKENS])
    assert run(launch, 2) == [FAILED, FAILED]
    assert run(launch) == [FAILED]
    assert begun(root)[key(TEXT)] == 1
    toys.write_script(root, {})
    again = toys.told(root, [TOKENS])
    assert states(again.store(), TOKENS, TEXT, MATH) == [State.QUEUED, State.QUEUED, State.DONE]
    assert run(again) == [0]


def test_a_stage_whose_earlier_stage_failed_or_never_ran_says_so_and_ends(root: Path) -> None:
    launch = toys.told(root, [scored(rewound_heads((0, 0)))])
    store = launch.store()
    assert run(launch, stage="evaluate") == [FAILED]
    status = store.status(scored(rewound_heads((0, 0))))
    assert status.state is State.BLOCKED
    assert status.message.endswith("is queued and belongs to an earlier stage")


def test_what_another_launch_says_of_a_step_does_not_keep_this_one_waiting(root: Path) -> None:
    launch = toys.told(root, [scored(rewound(DELTA_NORM))])
    Store(root, launch="another").mark(DELTA_NORM, State.BLOCKED, "something of that launch")
    toys.write_script(root, {key(SPECTRA): "fail"})
    assert run(launch) == [FAILED]
    assert launch.store().status(DELTA_NORM).message == f"{key(SPECTRA)} failed: told to fail"


@pytest.mark.slow
def test_a_step_that_kills_its_worker_each_time_fails_after_the_allowed_attempts_and_the_others_are_done(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly, harmless = (MATH, TEXT, HUB_TOKENIZER), (INST, BASE)
    launch = toys.told(root, [*deadly, *harmless], max_attempts=2)
    toys.write_script(root, {key(spec): "die" for spec in deadly})
    crew = toys.crew(launch, monkeypatch)
    wait_for(lambda: not crew.working(), what="the end of the crew", seconds=LONG)
    store = launch.store()
    assert states(store, *deadly, *harmless) == [State.FAILED] * 3 + [State.DONE] * 2
    assert store.status(MATH).message == "its worker ended without a word (2 times); see log.txt"
    assert {begun(root)[key(spec)] for spec in deadly} == {2}


# ----------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("number", "state"),
    rest_slow([(signal.SIGTERM, State.CANCELLED), (signal.SIGINT, State.CANCELLED), (signal.SIGUSR2, State.PREEMPTED)], fast=1),
)
def test_a_signal_hands_the_step_back_and_the_same_launch_goes_on(root: Path, number: int, state: State) -> None:
    launch = toys.told(root, [TOKENS])
    store = launch.store()
    toys.write_script(root, {key(TEXT): "hang"})
    with toys.workers(launch) as (worker,):
        wait_for_hanging(store, TEXT)
        worker.send_signal(number)
        said, _ = worker.communicate(timeout=LONG)
    assert worker.returncode == (PREEMPTED if state is State.PREEMPTED else STOPPED)
    assert f"stopped by a signal ({state}); the same command goes on from here" in said
    status = store.status(TEXT)
    assert (status.state, status.attempts, status.message) == (state, 1, "handed back by a signal")
    assert not (store.folder(TEXT) / "lease.json").exists()
    assert not list(store.folder(TEXT).glob(".product-*"))

    toys.write_script(root, {})
    assert run(launch) == [0]
    assert begun(root)[key(TEXT)] == 2
    assert begun(root)[key(MATH)] == 1


def test_a_signal_that_a_library_swallows_stops_the_worker_after_the_step_in_hand(root: Path) -> None:
    launch = toys.told(root, [TOKENS])
    store = launch.store()
    toys.write_script(root, {key(TEXT): "hang deaf"})
    with toys.workers(launch) as (worker,):
        wait_for_hanging(store, TEXT)
        worker.send_signal(signal.SIGTERM)
        assert codes([worker]) == [STOPPED]
    assert states(store, TEXT, TOKENS) == [State.DONE, State.QUEUED]


@pytest.mark.parametrize(
    ("number", "time", "code", "asked"),
    rest_slow(
        [
            (signal.SIGUSR2, "None", PREEMPTED, ["requeue 77"]),
            (signal.SIGTERM, "2026-11-22T15:06:33", PREEMPTED, ["show job 77", "requeue 77"]),
            (signal.SIGTERM, "None", STOPPED, ["show job 77"]),
        ],
        fast=2,
    ),
)
def test_a_preempted_job_is_put_back_into_the_queue_and_a_cancelled_one_is_not(
    root: Path, tmp_path: Path, number: int, time: str, code: int, asked: list[str]
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "PreemptEligibleTime=2026-11-22 PreemptTime={time}"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    launch = toys.told(root, [MATH])
    toys.write_script(root, {key(MATH): "hang"})
    job = {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    with toys.workers(launch, environment=job) as (worker,):
        wait_for_hanging(launch.store(), MATH)
        worker.send_signal(number)
        assert codes([worker]) == [code]
    assert (tmp_path / "asked").read_text().splitlines() == asked
    status = launch.store().status(MATH)
    assert (status.job, status.state) == ("77", State.PREEMPTED if code == PREEMPTED else State.CANCELLED)


def scontrol(folder: Path, *answers: str) -> dict[str, str]:
    """The environment of job 77, where scontrol says one thing after another, `ok` for success, the last for ever."""
    lines = "\n".join(f"{turn}{'' if turn < len(answers) else '|*'}) say='{said}' ;;" for turn, said in enumerate(answers, start=1))
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f"""#!/bin/sh
echo "$@" >> {folder}/asked
case $(wc -l < {folder}/asked) in
{lines}
esac
[ "$say" = ok ] && exit 0
echo "$say" >&2; exit 1
""")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return {"SLURM_JOB_ID": "77", "PATH": f"{tool.parent}:{os.environ['PATH']}"}


def test_the_exit_codes_that_are_documented_are_those_there_are() -> None:
    text = (toys.TESTS.parent / "docs" / "slurm.md").read_text()
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == {*worker.ENDINGS, worker.UNFIT}


DOWN = "Unable to contact slurm controller (connect failure) for job 77"


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        (("ok",), 1),
        ((DOWN, DOWN, "ok"), 3),
        ((DOWN, "Requested operation is presently disabled for job 77"), 2),
        (("Invalid job id specified for job 77",), 1),
        (("Only batch jobs are accepted or processed for job 77",), 1),
        (("Access/permission denied for job 77",), 1),
    ],
)
def test_a_controller_that_does_not_answer_is_asked_again_to_queue_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...], times: int
) -> None:
    for name, value in scontrol(tmp_path, *answers).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(worker, "REQUEUE_SECONDS", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    try:
        worker._requeue()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue 77"] * times


REQUEUE = """
import signal
from cpt_lab import worker
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a worker does that was told to end
worker.REQUEUE_SECONDS = 3600.0
worker._requeue()
"""


def test_a_job_that_is_cancelled_while_nobody_takes_it_back_ends_and_is_not_queued_again(tmp_path: Path) -> None:
    process = start(REQUEUE, environment=scontrol(tmp_path, DOWN, "ok"))
    try:
        assert hear(process) == f"SLURM does not take this job back now ({DOWN}); it is asked again until the job's time is over"
        wait_for(lambda: _catches_term(process.pid), what="the end of its deafness")
        process.terminate()
        assert process.wait(timeout=LONG) == -signal.SIGTERM
    finally:
        kill(process)
    assert (tmp_path / "asked").read_text().splitlines() == ["requeue 77"]


def _catches_term(process: int) -> bool:
    """Whether TERM is not ignored, as the kernel says."""
    ignored = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return not int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.parametrize(("state", "asked"), [(State.PREEMPTED, ["requeue"]), (State.CANCELLED, ["mirror"])])
def test_a_preempted_task_does_not_wait_for_mlflow_before_it_is_put_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, state: State, asked: list[str]
) -> None:
    launch, done = toys.prepared(Store(root), toys.planned(Store(root), [MATH]), where="slurm"), list[str]()
    monkeypatch.setattr(worker.Keeper, "keep", lambda *_, **__: None)
    monkeypatch.setattr(worker.Signals, "listen", lambda _: None)
    monkeypatch.setattr(worker.Worker, "run", Mock(side_effect=Stopped(state)))
    monkeypatch.setattr(worker, "_mirror", lambda _: done.append("mirror"))
    monkeypatch.setattr(worker, "_requeue", lambda: done.append("requeue"))
    worker.main([str(launch.folder)])
    assert done == asked


@pytest.mark.parametrize(
    ("number", "code"), rest_slow([(signal.SIGTERM, STOPPED), (signal.SIGINT, STOPPED), (signal.SIGUSR2, PREEMPTED)], fast=1)
)
def test_a_task_that_gets_a_signal_while_it_starts_obeys_when_it_listens(root: Path, tmp_path: Path, number: int, code: int) -> None:
    launch = toys.prepared(Store(root), toys.planned(Store(root), [TOKENS]), where="slurm")  # with its keeper
    place = launch_environment(launch) | {"TOY_START": str(tmp_path)}
    command = [*slurm.deaf(sys.executable), "-m", "cpt_lab.worker", str(launch.folder)]
    with subprocess.Popen(command, env=place, stdout=subprocess.PIPE, text=True) as task:
        wait_for((tmp_path / "starting").exists, what="the start of Python")
        task.send_signal(number)
        (tmp_path / "begin").touch()
        said, _ = task.communicate(timeout=LONG)
    assert task.returncode == code
    assert "stopped by a signal" in said
    assert toys.notes(root) == []


def test_a_local_worker_that_is_told_to_end_while_it_starts_does_so_and_no_other_takes_its_place(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = toys.told(root, [TOKENS])
    monkeypatch.setenv("TOY_START", str(tmp_path))
    crew = toys.crew(launch, monkeypatch, 1)
    wait_for((tmp_path / "starting").exists, what="the start of Python")
    (worker,) = next(found for found in launches.of_study(launch.store(), "toys")).workers_here()
    os.kill(worker, signal.SIGTERM)
    (tmp_path / "begin").touch()
    wait_for(lambda: not crew.working(), what="the end of the crew", seconds=LONG)
    crew.explain()
    assert f"worker 0 ended with code {STOPPED}" in capsys.readouterr().err
    assert toys.notes(root) == []


def launch_environment(launch: Launch) -> dict[str, str]:
    place = environment(launch)
    return place | {"PYTHONPATH": f"{place['PYTHONPATH']}:{toys.customized(launch)}"}


def test_a_worker_that_waits_for_anothers_step_stops_at_once(root: Path) -> None:
    launch = toys.told(root, [MATH])
    toys.write_script(root, {key(MATH): "hang"})
    with toys.workers(launch, 2) as processes:
        wait_for_hanging(launch.store(), MATH)
        holder = toys.notes(root)[0][0]
        (idle,) = (process for process in processes if process.pid != holder)
        wait_for(lambda: catches(idle.pid, signal.SIGTERM), what="the other worker's start", seconds=LONG)
        idle.send_signal(signal.SIGTERM)
        assert codes([idle]) == [STOPPED]
        assert states(launch.store(), MATH) == [State.RUNNING]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return bool(int(lines["SigCgt"], 16) >> (number - 1) & 1)


# -------------------------------------------------------------------------------------------------------------- kill -9


def test_kill_9_of_one_worker_leaves_nothing_undone_and_nothing_done_twice(root: Path) -> None:
    launch = toys.told(root, POINTS)
    store = launch.store()
    victim_point = scored(TUNED)
    toys.write_script(root, {key(victim_point): "hang"})
    with toys.workers(launch, 2) as processes:
        wait_for_hanging(store, victim_point)
        toys.write_script(root, {})
        pid = next(pid for pid, name in toys.notes(root) if name == key(victim_point))
        (victim,) = (process for process in processes if process.pid == pid)
        (other,) = (process for process in processes if process.pid != pid)
        victim.kill()
        assert codes([other]) == [0]
    found = attempts(root)
    assert found.pop(key(victim_point)) == 2
    assert set(found.values()) == {1}
    assert begun(root) == {**found, key(victim_point): 2}
    assert len(list((root / "evaluations").glob("*/DONE"))) == 4


@pytest.mark.slow
def test_after_all_workers_were_killed_the_next_launch_builds_only_what_is_missing(root: Path) -> None:
    launch = toys.told(root, POINTS)
    toys.write_script(root, {key(DELTA_NORM): "hang", key(scored(TUNED)): "hang"})
    with toys.workers(launch, 2):
        wait_for_hanging(launch.store(), DELTA_NORM)
        wait_for_hanging(launch.store(), scored(TUNED))
    assert states(launch.store(), DELTA_NORM, scored(TUNED)) == [State.LOST, State.LOST]
    toys.write_script(root, {})
    again = toys.told(root, POINTS)
    assert key(TUNED) not in {key(order.spec) for order in again.orders}
    assert run(again, 2) == [0, 0]
    twice = {name for name, count in begun(root).items() if count != 1}
    assert twice == {key(DELTA_NORM), key(scored(TUNED))}


def test_a_worker_that_finds_a_step_lost_too_often_gives_it_up(root: Path) -> None:
    launch = toys.told(root, [MATH], max_attempts=3)
    store = launch.store()
    for _ in range(3):
        store.mark(MATH, State.RUNNING)
    assert states(store, MATH) == [State.LOST]
    assert run(launch) == [FAILED]
    assert toys.notes(root) == []
    assert store.status(MATH).message == "its worker ended without a word (3 times); see log.txt"


def test_a_crew_that_is_stopped_hands_back_what_it_builds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = toys.told(root, [MATH, TEXT])
    toys.write_script(root, {key(MATH): "hang", key(TEXT): "hang"})
    crew = toys.crew(launch, monkeypatch)
    wait_for_hanging(launch.store(), MATH)
    wait_for_hanging(launch.store(), TEXT)
    crew.stop()
    assert not crew.working()
    assert states(launch.store(), MATH, TEXT) == [State.CANCELLED, State.CANCELLED]


# ------------------------------------------------------------------------------------------- points that harm their worker


def by_crew(launch: Launch, patch: pytest.MonkeyPatch, count: int = 1) -> None:
    crew = toys.crew(launch, patch, count)
    try:
        wait_for(lambda: not crew.working(), what="the end of the crew", seconds=LONG)
    finally:
        crew.stop()


def leftovers(root: Path) -> list[Path]:
    """What only a step that is being built may have."""
    return [path for pattern in (".product-*", "lease.json", ".lease-*", ".takeover-*") for path in root.glob(f"*/*/{pattern}")]


def test_a_point_that_runs_out_of_memory_is_built_with_half_the_batches_until_it_fits(root: Path) -> None:
    launch = toys.told(root, [MATH, TEXT])
    toys.write_script(root, {key(MATH): "large 16"})
    assert run(launch) == [0]
    store = launch.store()
    assert attempts(root)[key(MATH)] == 1
    assert begun(root)[key(MATH)] == 3
    assert store.provenance(MATH)["execution"]["halvings"] == 2
    assert [path.name for path in store.product(MATH).iterdir()] == ["results.json"]
    assert "CUDA out of memory. Tried to allocate 2.00 GiB; once more with half the batches" in (store.folder(MATH) / "log.txt").read_text()


def test_a_point_that_does_not_fit_with_the_smallest_batches_fails_with_the_reason(root: Path) -> None:
    launch = toys.told(root, [MATH, TEXT])
    toys.write_script(root, {key(MATH): "large 0"})
    assert run(launch) == [FAILED]
    assert launch.store().status(MATH).message == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert states(launch.store(), MATH, TEXT) == [State.FAILED, State.DONE]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("segfault", "its worker ended without a word (2 times); see log.txt"),
        ("leave", "its worker ended without a word (2 times); see log.txt"),
        ("poison", "RuntimeError: CUDA error: an illegal memory access was encountered (2 times); see log.txt"),
    ],
)
def test_a_point_that_spoils_its_process_is_tried_by_another_one_and_given_up_in_the_end(
    root: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    launch = toys.told(root, [MATH, TEXT, INST])
    toys.write_script(root, {key(MATH): script})
    by_crew(launch, monkeypatch)
    store = launch.store()
    assert states(store, MATH, TEXT, INST) == [State.FAILED, State.DONE, State.DONE]
    assert store.status(MATH).message == message
    processes = [process for process, name in toys.notes(root) if name == key(MATH)]
    assert len(set(processes)) == len(processes) == 2
    assert leftovers(root) == []


def test_a_point_that_exits_is_that_points_failure_alone(root: Path) -> None:
    launch = toys.told(root, [MATH, TEXT])
    toys.write_script(root, {key(MATH): "exit"})
    assert run(launch) == [FAILED]
    assert states(launch.store(), MATH, TEXT) == [State.FAILED, State.DONE]
    assert launch.store().status(MATH).message == "SystemExit: 0"


@pytest.mark.slow
@pytest.mark.parametrize("script", ["hang", "hang dead"])
def test_a_point_that_hangs_is_given_up_with_its_process_and_the_others_are_done(
    root: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    launch = toys.told(root, [MATH, TEXT], how=Execution(point_minutes=0.5 / 60))
    toys.write_script(root, {key(MATH): script})
    monkeypatch.setenv("TOY_GRACE_SECONDS", "0.5")
    by_crew(launch, monkeypatch)
    store = launch.store()
    assert states(store, MATH, TEXT) == [State.FAILED, State.DONE]
    said = "its worker ended without a word" if script == "hang dead" else "not finished after 0.00833333 minutes"
    assert store.status(MATH).message == f"{said} (2 times); see log.txt"
    assert leftovers(root) == []


def test_a_store_without_room_ends_the_worker_and_no_point_is_to_blame(root: Path) -> None:
    launch = toys.told(root, [MATH, TEXT])
    toys.write_script(root, {key(MATH): "no space", key(TEXT): "no space"})
    with toys.workers(launch) as (worker,):
        said, _ = worker.communicate(timeout=LONG)
    assert worker.returncode == NO_ROOM
    assert f"stopped: {root} cannot be written (No space left on device); the same command goes on from here" in said
    assert State.FAILED not in states(launch.store(), MATH, TEXT)
    toys.write_script(root, {})
    assert run(launch) == [0]
