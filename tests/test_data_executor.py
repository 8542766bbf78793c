"""Processes that read a corpus and end before their time: what is said tells a kill from a crash and from a start that failed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_lab.data.executor import how_they_ended

KILLED, CRASHED, LEFT = "was killed, perhaps for memory", r"crashed (SIGSEGV)", "ended by itself with exit code 1"
SCRIPT = """
import os, signal, sys
from dataclasses import dataclass
from pathlib import Path
from cpt_lab.data import executor
from cpt_lab.data.shards import Shard

@dataclass(frozen=True)
class Act:
    how: str

    def work(self, group, rank):
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    how, scratch = sys.argv[1], Path(sys.argv[2])
    if how == "do not start":
        os.remove(__file__)
    executor.run(Act(how), [(Shard("jsonl", "x"),)] * 3, processes=2, scratch=scratch, progress=lambda *_: None)
    print("done")
"""


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ([-signal.SIGTERM, -signal.SIGKILL], KILLED),
        ([-signal.SIGSEGV, -signal.SIGTERM], CRASHED),
        ([1, -signal.SIGTERM], LEFT),
        ([1, -signal.SIGKILL], KILLED),
        ([None, -signal.SIGTERM], KILLED),
        ([], KILLED),
    ],
)
def test_exit_codes_tell_how_processes_ended(codes: list[int | None], said: str) -> None:
    assert said in how_they_ended(codes)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("die", KILLED), ("do not start", LEFT), ("work", "done")])
def test_a_process_that_cannot_start_is_not_taken_for_one_that_was_killed(tmp_path: Path, how: str, said: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, str(script), how, str(tmp_path / "scratch")], capture_output=True, text=True, check=False, timeout=120
    )
    assert said in (ended.stdout or ended.stderr.strip().splitlines()[-1])
