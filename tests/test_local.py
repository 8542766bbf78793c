"""A launch on this machine: its workers end with it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toys
from cpt_lab import local
from cpt_lab.launch import Launch
from cpt_lab.lease import holder
from cpt_lab.specs import key
from cpt_lab.store import State
from processes import kill, wait_for
from spec_cases import INST, MATH

WORK = """
import signal, sys
from pathlib import Path
from cpt_lab import launch, local
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever nohup or a background shell made of them
signal.signal(signal.SIGINT, signal.default_int_handler)
local.work(launch.load(Path(sys.argv[1])), 2)
"""


@pytest.fixture
def told(tmp_path: Path) -> Launch:
    return toys.told(tmp_path / "results", [MATH, INST])


def start(told: Launch, code: str = WORK, *words: str) -> subprocess.Popen[str]:
    place = {**os.environ, "PYTHONPATH": f"{toys.customized(told)}:{toys.TESTS.parent}"}
    command = [sys.executable, "-c", code, str(told.folder), *words]
    return subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


# Between the start of the first worker and that of the second this process gets a signal.
STOPPED_WHILE_STARTING = """
import os, subprocess, sys
from pathlib import Path
from cpt_lab import local
begin = subprocess.Popen
def popen(*words, **how):
    process = begin(*words, **how)
    print(process.pid, flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
    return process
local.subprocess.Popen = popen
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_launch_that_is_told_to_end_while_it_starts_workers_leaves_none_behind(told: Launch, number: int) -> None:
    toys.write_script(told.results, {key(MATH): "hang", key(INST): "hang"})
    launched = start(told, STOPPED_WHILE_STARTING + WORK, str(int(number)))
    try:
        said, _ = launched.communicate(timeout=60)
    finally:
        kill(launched)
    started = [int(line) for line in said.splitlines() if line.isdecimal()]
    left = [pid for pid in started if Path(f"/proc/{pid}").exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (bool(started), left) == (True, [])
    assert launched.returncode == local.INTERRUPTED
    assert State.RUNNING not in [told.store().status(spec).state for spec in (MATH, INST)]


@pytest.mark.slow
def test_a_worker_that_cannot_be_started_takes_those_before_it_along(told: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write_script(told.results, {key(MATH): "hang", key(INST): "hang"})
    monkeypatch.setenv("PYTHONPATH", str(toys.customized(told)))
    begin, started = subprocess.Popen, []

    def popen(*words: Any, **how: Any) -> subprocess.Popen[bytes]:
        if started:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(begin(*words, **how))
        return started[0]

    monkeypatch.setattr(local.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="temporarily unavailable"):
        local.work(told, 2)
    assert started[0].poll() is not None


@pytest.mark.slow
def test_other_machines_see_a_launch_at_work_until_it_has_ended(told: Launch) -> None:
    toys.write_script(told.results, {key(MATH): "hang"})
    launched = start(told)
    try:
        wait_for(lambda: (told.store().folder(MATH) / "hanging").exists(), what="the build")
        owner = holder(told.folder)
        assert owner is not None
        assert owner.pid == launched.pid
        launched.send_signal(signal.SIGTERM)
        launched.communicate(timeout=60)
    finally:
        kill(launched)
    assert not (told.folder / "lease.json").exists()


def wait_for_both(told: Launch) -> None:
    store = told.store()
    wait_for(lambda: all((store.folder(spec) / "hanging").exists() for spec in (MATH, INST)), what="both builds")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_launch_that_is_told_to_end_has_its_workers_hand_back_what_they_build(told: Launch, number: int) -> None:
    toys.write_script(told.results, {key(MATH): "hang", key(INST): "hang"})
    launched = start(told)
    try:
        wait_for_both(told)
        launched.send_signal(number)
        said, _ = launched.communicate(timeout=60)
    finally:
        kill(launched)
    assert launched.returncode == local.INTERRUPTED
    assert said.endswith(f"the same command goes on from here:\n  {told.command}\n")
    assert [told.store().status(spec).state for spec in (MATH, INST)] == [State.CANCELLED, State.CANCELLED]


def test_a_launch_whose_steps_all_end_ends_by_itself(told: Launch) -> None:
    launched = start(told)
    said, errors = launched.communicate(timeout=60)
    assert (launched.returncode, errors) == (0, "")
    assert "data 2/2" in said
    assert [told.store().status(spec).state for spec in (MATH, INST)] == [State.DONE, State.DONE]
