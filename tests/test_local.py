"""A launch on this machine: its workers end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import toys
from cpt_lab import local
from cpt_lab.launch import Launch
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


def start(told: Launch) -> subprocess.Popen[str]:
    place = {**os.environ, "PYTHONPATH": f"{toys.customized(told)}:{toys.TESTS.parent}"}
    command = [sys.executable, "-c", WORK, str(told.folder)]
    return subprocess.Popen(command, env=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


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
