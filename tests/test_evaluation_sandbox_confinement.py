"""What a confined process can no longer do, whatever the kernel offers, and that nothing of a sandbox outlives its owner."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.evaluation.sandbox.system_calls import AARCH64, ALLOW, ALLOWED, KILL, MACHINES, REFUSE, WRITING, X86_64, system_call_filter
from processes import hear, start, wait_for

# ------------------------------------------------------------------------------------------------- the filter, by hand


def verdict(lines: bytes, *, number: int, audit: int, arguments: tuple[int, ...] = ()) -> int:
    """What a filter returns for a system call, by the few instructions of linux/bpf_common.h that ours has."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", lines))
    place = accumulator = 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x15:
            place += if_true if accumulator == operand else if_false
        else:
            assert code == 0x06
            return int(operand)


def asked(machine: str, name: str, *arguments: int, child: int | None = None) -> int:
    here = MACHINES[machine]
    return verdict(system_call_filter(here, child=child), number=here.numbers[name], audit=here.audit, arguments=arguments)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_on_the_list_is_allowed_and_nothing_else(machine: str) -> None:
    here = MACHINES[machine]
    lines = system_call_filter(here, child=None)
    allowed = {number for number in range(500) if verdict(lines, number=number, audit=here.audit) == ALLOW}
    # with arguments that are all zero these may pass too: opening for reading, F_DUPFD, a look at one's own limits
    harmless = {here.numbers[name] for name in ("open", "openat", "fcntl", "prlimit64") if name in here.numbers}
    assert allowed == {here.numbers[name] for name in ALLOWED if name in here.numbers} | harmless


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(0, 2**32 - 1), arguments=st.tuples(*[st.integers(0, 2**64 - 1)] * 6))
def test_an_unknown_number_is_refused_and_another_architecture_ends_the_process(
    machine: str, number: int, arguments: tuple[int, ...]
) -> None:
    here = MACHINES[machine]
    lines = system_call_filter(here, child=None)
    if number not in here.numbers.values():
        assert verdict(lines, number=number, audit=here.audit, arguments=arguments) == REFUSE
    assert verdict(lines, number=number, audit=here.audit ^ 1, arguments=arguments) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@given(flags=st.integers(0, 2**32 - 1))
def test_files_are_opened_for_reading_alone(machine: str, flags: int) -> None:
    expected = REFUSE if flags & WRITING else ALLOW
    assert asked(machine, "openat", 0, 0, flags) == expected
    if "open" in MACHINES[machine].numbers:
        assert asked(machine, "open", 0, flags) == expected


@pytest.mark.parametrize("machine", MACHINES)
@given(process=st.integers(1, 2**22).filter(lambda process: process not in (7, os.getpid())))
def test_signals_go_to_itself_and_to_a_known_child_alone(machine: str, process: int) -> None:
    assert asked(machine, "tgkill", os.getpid()) == ALLOW
    assert asked(machine, "tgkill", process) == asked(machine, "kill", process, child=7) == REFUSE
    assert asked(machine, "wait4", 7, child=7) == asked(machine, "kill", 7, child=7) == ALLOW
    assert asked(machine, "kill", 7) == asked(machine, "wait4", 7) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
def test_limits_can_be_read_and_not_changed(machine: str) -> None:
    assert asked(machine, "prlimit64", 0, 9, 0, 1234) == ALLOW
    assert asked(machine, "prlimit64", 0, 9, 1234) == asked(machine, "prlimit64", 0, 9, 1 << 32) == REFUSE
    assert asked(machine, "prlimit64", 99, 9, 0, 1234) == REFUSE


@pytest.mark.parametrize("numbers", [X86_64, AARCH64])
def test_no_two_system_calls_have_one_number(numbers: Mapping[str, int]) -> None:
    assert len(set(numbers.values())) == len(numbers)


# ------------------------------------------------------------------------------------------------- a process, confined

CONFINED = """
import os, sys
from cpt_lab.evaluation.sandbox import confinement
from cpt_lab.evaluation.sandbox.confinement import Limits, Unconfined, confine
if sys.argv[1] == "no landlock":
    confinement._hide_files = lambda *_: False
try:
    {body}
except Unconfined as error:
    print("unconfined:", error)
sys.stdout.flush()
os._exit(0)
"""
ATTEMPTS = """
    print("hidden" if confine(Limits(2 ** 30, 5, 5.0)) else "open")
    for attempt in {attempts!r}:
        try:
            exec(attempt)
            print("done:", attempt)
        except OSError as error:
            print(error.errno)
"""


def answers(attempts: list[str], *, landlock: bool = True) -> list[str]:
    body = ATTEMPTS.format(attempts=["import socket, subprocess", *attempts])
    process = start(CONFINED.format(body=body.strip()), "landlock" if landlock else "no landlock")
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return said.splitlines()


@pytest.mark.parametrize("landlock", [True, False])
def test_without_landlock_too_there_is_no_way_out(landlock: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("whole")
    attempts = [
        "socket.socket()",
        "os.fork()",
        "subprocess.run(['true'])",
        "os.execv('/bin/true', ['true'])",
        f"os.kill({os.getpid()}, 0)",
        f"open({str(tmp_path / 'file')!r}, 'w')",
        f"os.remove({str(tmp_path / 'file')!r})",
        f"os.mkdir({str(tmp_path / 'new')!r})",
        f"os.symlink('a', {str(tmp_path / 'link')!r})",
        "os.setsid()",
        "os.chdir('/')",
    ]
    _, _, *refused = answers(attempts, landlock=landlock)
    assert set(refused) <= {str(errno.EPERM), str(errno.EACCES)}
    assert len(refused) == len(attempts)
    assert (tmp_path / "file").read_text() == "whole"


def test_with_landlock_a_process_reads_the_standard_library_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a secret")
    said = answers([f"open({str(tmp_path / 'file')!r})", "os.listdir('/')", "open(os.__file__).close()", "import wave"])
    if said[0] == "open":
        pytest.skip("this kernel has no Landlock")
    assert said[2:] == [str(errno.EACCES), str(errno.EACCES), "done: open(os.__file__).close()", "done: import wave"]


def test_a_kernel_without_filters_leaves_a_process_unconfined() -> None:
    body = "confinement._filter_system_calls(type('Kernel', (), {'prctl': lambda *_: -1})(), b'')"
    process = start(CONFINED.format(body=body), "landlock")
    assert process.communicate(timeout=60)[0].startswith("unconfined: the kernel refuses a filter of system calls")


def test_a_kernel_that_takes_a_filter_and_forgets_it_leaves_a_process_unconfined() -> None:
    body = "confinement._filter_system_calls(type('Kernel', (), {'prctl': lambda *_: 0})(), b'')"
    process = start(CONFINED.format(body=body), "landlock")
    assert process.communicate(timeout=60)[0] == "unconfined: the kernel took a filter of system calls and does not hold to it\n"


# ---------------------------------------------------------------------------------------------------------- afterwards

SLEEPER = """
import sys
from cpt_lab.evaluation.sandbox.runner import Program, run_programs
print("running", flush=True)
run_programs([Program("import time\\ntime.sleep(1000)", "", ())] * 2, workers=2, seconds=60)
"""


def descendants(process: int) -> set[int]:
    """The processes below this one, by /proc."""
    parents = {int(place.name): parent for place in Path("/proc").glob("[0-9]*") for parent in parent_of(place)}
    found: set[int] = set()
    below = {process}
    while below:
        below = {child for child, parent in parents.items() if parent in below} - found
        found |= below
    return found


def parent_of(place: Path) -> Iterator[int]:
    try:
        yield int((place / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return


def alive(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.mark.slow
def test_programs_die_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    worker = start(SLEEPER, environment={"TMPDIR": str(tmp_path)})
    hear(worker)
    wait_for(lambda: len(descendants(worker.pid)) == 6, what="two starters, two testers and two programs")
    below = descendants(worker.pid)
    worker.kill()
    worker.communicate()
    wait_for(lambda: not any(map(alive, below)), what="the end of the programs")


def test_a_listener_of_the_worker_s_own_is_not_inherited() -> None:
    from cpt_lab.evaluation.sandbox.runner import Program, run_programs

    source = (
        "import os\ndef f():\n    found = []\n"
        "    for number in range(3, 64):\n        try:\n            found.append(os.fstat(number).st_mode)\n"
        "        except OSError:\n            pass\n    return len(found)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        (outcome,) = run_programs([Program(source, "assert f() == 2", ("f",))])
    assert outcome.passed, outcome.message
