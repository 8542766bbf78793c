"""Programs in the sandbox: honest ones pass, wrong ones fail, and nothing that a program tries lets it pass, get out or go on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from cpt_lab.evaluation.sandbox import runner
from cpt_lab.evaluation.sandbox.runner import Outcome, Program, SandboxUnavailable, Verdict, check_sandbox, run_programs
from sandbox_attacks import ATTACKS, TESTS

SECRET = "the-secret-of-the-canary"
MEMORY = 256 * 1024**2
NEEDS_LANDLOCK = ("reads_what_is_not_its_own",)


def run(source: str, tests: str, *entries: str, setup: str = "") -> Outcome:
    (outcome,) = run_programs([Program(source, tests, entries or ("f",), setup)], workers=1, seconds=1)
    return outcome


# ----------------------------------------------------------------------------------------------------------------- attacks


class Aftermath(NamedTuple):
    outcomes: dict[str, Outcome]
    canary: Path
    connections: int
    left_behind: list[str]
    files_hidden: bool


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """What all attacks together came to."""
    folder = tmp_path_factory.mktemp("home")
    canary = folder / "canary"
    canary.write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("TOKEN", SECRET)
        local.bind(str(folder / "socket"))
        local.listen()
        words = {"CANARY": canary, "FOLDER": folder, "PORT": server.getsockname()[1], "SOCKET": folder / "socket", "WORKER": os.getpid()}
        before = processes()
        outcomes = run_programs(
            [Program(placed(attack.source, words), TESTS, ("add",)) for attack in ATTACKS.values()], workers=4, seconds=1, memory=MEMORY
        )
        yield Aftermath(
            dict(zip(ATTACKS, outcomes, strict=True)), canary, accepted(server, local), sorted(processes() - before), check_sandbox()
        )


def placed(source: str, words: dict[str, object]) -> str:
    for word, value in words.items():
        source = source.replace(word, str(value))
    return source


def accepted(*servers: socket.socket) -> int:
    """How many connections are waiting."""
    count = 0
    for server in servers:
        server.setblocking(False)
        try:
            server.accept()[0].close()
            count += 1
        except BlockingIOError:
            pass
    return count


def processes() -> set[str]:
    """The processes, dead ones too, that run a tester or come from one."""
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"cpt_lab.evaluation.sandbox.tester" in (place / "cmdline").read_bytes():
                found.add(place.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_not_pass_and_ends_as_it_should(name: str, aftermath: Aftermath) -> None:
    if name in NEEDS_LANDLOCK and not aftermath.files_hidden:
        pytest.skip("this kernel has no Landlock")
    outcome = aftermath.outcomes[name]
    assert outcome.verdict == ATTACKS[name].verdict, outcome.message
    assert "got away" not in outcome.message


@pytest.mark.slow
def test_after_all_attacks_the_canary_is_whole_and_alone(aftermath: Aftermath) -> None:
    assert aftermath.canary.read_text() == SECRET
    assert sorted(path.name for path in aftermath.canary.parent.iterdir()) == ["canary", "socket"]
    assert not Path("/tmp/cpt_lab_attack").exists()
    assert not Path("/dev/shm/cpt_lab_attack").exists()


@pytest.mark.slow
def test_no_attack_reached_a_listener(aftermath: Aftermath) -> None:
    assert aftermath.connections == 0


@pytest.mark.slow
def test_no_attack_tells_a_secret(aftermath: Aftermath) -> None:
    assert [name for name, outcome in aftermath.outcomes.items() if SECRET in outcome.message] == []


@pytest.mark.slow
def test_no_process_is_left_behind(aftermath: Aftermath) -> None:
    assert aftermath.left_behind == []


@pytest.mark.slow
def test_there_are_more_than_twenty_five_attacks_of_every_verdict() -> None:
    assert len(ATTACKS) > 25
    assert {attack.verdict for attack in ATTACKS.values()} == set(get_args(Verdict)) - {"passed"}


# --------------------------------------------------------------------------------------------------------- honest programs


def test_a_right_program_passes_and_a_wrong_one_fails_at_the_line_it_fails() -> None:
    tests = "assert f(1) == 2\nassert f(2) == 3"
    assert run("def f(x):\n    return x + 1", tests) == Outcome("passed")
    assert run("def f(x):\n    return 2", tests) == Outcome("failed", "AssertionError at 'assert f(2) == 3'")


@pytest.mark.parametrize(
    "source",
    [
        "import collections\nf = collections.Counter",
        "from collections import defaultdict\ndef f(text):\n    d = defaultdict(int)\n    for c in text:\n        d[c] += 1\n    return d",
        "from collections import OrderedDict\ndef f(text):\n    return OrderedDict((c, text.count(c)) for c in text)",
        "import sys\ndef f(text):\n    print(text, file=sys.stderr)\n    return {c: text.count(c) for c in text}",
    ],
)
def test_a_dictionary_is_a_dictionary_by_whatever_name(source: str) -> None:
    assert run(source, "assert f('abba') == {'a': 2, 'b': 2}").passed


@pytest.mark.parametrize(
    ("value", "equal"),
    [
        ("(1, 2)", "(1, 2)"),
        ("[[1], [2.5, None]]", "[[1], [2.5, None]]"),
        ("{1, 2} | frozenset([3])", "{1, 2, 3}"),
        ("10 ** 5000", "10 ** 5000"),
        ("-7", "-7"),
        ("1 + 2j", "1 + 2j"),
        ("b'\\xff'", "b'\\xff'"),
        ("'\\ud800\\x00é'", "'\\ud800\\x00é'"),
        ("float('inf')", "float('inf')"),
        ("True", "1"),
        ("__import__('decimal').Decimal('2.50')", "2.5"),
        ("__import__('fractions').Fraction(1, 4)", "0.25"),
        ("range(3)", "range(3)"),
        ("__import__('enum').IntEnum('Colour', 'red').red", "1"),
        ("__import__('collections').namedtuple('Pair', 'a b')(1, 2)", "(1, 2)"),
    ],
)
def test_a_value_equals_what_it_equals_without_a_sandbox(value: str, equal: str) -> None:
    assert run(f"def f():\n    return {value}", f"assert f() == {equal}").passed


@pytest.mark.parametrize(
    "value", ["map(int, '12')", "(int(c) for c in '12')", "{1: 0, 2: 0}.keys()", "__import__('collections').deque([1, 2])"]
)
def test_what_can_be_gone_through_arrives_as_its_elements_but_is_no_list(value: str) -> None:
    source = f"def f():\n    return {value}"
    assert run(source, "assert list(f()) == [1, 2]\nassert sorted(f()) == [1, 2]").passed
    assert run(source, "assert f() == [1, 2]").verdict == "failed"


def test_arguments_arrive_as_they_were_given_positions_and_names() -> None:
    tests = "assert f([1, (2,)], {3: '4'}, third={5}) == ([1, (2,)], {3: '4'}, {5})"
    assert run("def f(first, second, *, third):\n    return first, second, third", tests).passed


def test_an_exception_that_a_test_expects_arrives_as_itself() -> None:
    tests = "try:\n    f()\nexcept KeyError as error:\n    assert 'missing' in str(error)\nelse:\n    raise AssertionError('nothing')"
    assert run("def f():\n    raise KeyError('missing')", tests).passed
    assert run("class Own(Exception):\n    pass\ndef f():\n    raise Own('missing')", tests).verdict == "failed"


def test_classes_with_annotations_of_their_own_work() -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\n"
        "class Point:\n    x: int\n    other: Point | None = None\n"
        "def f(x):\n    return Point(x, Point(x)).other.x"
    )
    assert run(source, "assert f(3) == 3").passed


@pytest.mark.parametrize(
    "source", ["def f(:", "def g():\n    return 1", "f = 1", "def f():\n    return \x00", "import numpy\ndef f():\n    return 1", ""]
)
def test_a_program_without_the_function_fails(source: str) -> None:
    assert run(source, "assert f() == 1").verdict == "failed"


def test_tests_use_the_helpers_of_the_prompt_and_not_those_of_the_program() -> None:
    setup = "def double(x):\n    return 2 * x\n\ndef f(x):\n    'Half of x.'\n"
    tests = "assert double(f(6)) == 6"
    assert run(setup + "    return x / 2", tests, setup=setup).passed
    assert run(setup + "    return 0\n\ndef double(x):\n    return 6", tests, setup=setup).verdict == "failed"


def test_what_is_drawn_at_random_is_the_same_every_time() -> None:
    source = "import random\ndef f():\n    return random.random(), hash('text')\n"
    tests = "import random\nfirst = f()\nraise ValueError((first, f(), random.random(), hash('text')))"
    assert len({run(source, tests).message for _ in range(2)}) == 1


def test_shared_objects_are_found_where_the_worker_finds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib.so").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    source = f"import os\ndef f():\n    return os.listdir({str(tmp_path)!r}), dict(os.environ)"
    assert run(source, "assert f() == (['lib.so'], {})") == Outcome("passed")


def test_outcomes_stand_in_the_order_of_their_programs() -> None:
    programs = [Program(f"def f():\n    return {number % 3}", "assert f() == 0", ("f",)) for number in range(12)]
    expected = [number % 3 == 0 for number in range(12)]
    assert [outcome.passed for outcome in run_programs(programs, workers=3)] == expected
    assert [outcome.passed for outcome in run_programs(programs, workers=1)] == expected


def test_no_programs_have_no_outcomes() -> None:
    assert run_programs([]) == []


def test_a_program_that_ends_badly_is_no_matter_to_the_next() -> None:
    sources = ["import os\nos._exit(3)", "import ctypes\nctypes.string_at(0)", "import builtins\nbuiltins.len = None", "x = 1"]
    programs = [Program(f"{source}\ndef f():\n    return len('ab')", "assert f() == 2", ("f",)) for source in sources]
    assert [outcome.verdict for outcome in run_programs(programs, workers=1)] == ["crashed", "crashed", "crashed", "passed"]


@pytest.mark.parametrize(
    "module",
    ["asyncio", "concurrent.futures", "datetime", "decimal", "hashlib", "multiprocessing", "sqlite3", "unittest.mock", "urllib.request"],
)
def test_the_standard_library_can_be_imported(module: str) -> None:
    assert run(f"import {module}\ndef f():\n    return {module}.__name__", f"assert f() == {module!r}") == Outcome("passed")


# ------------------------------------------------------------------------------------------------------------ what is wrong


@pytest.mark.parametrize("wrong", ["assert f(", "1 +"])
def test_tests_that_are_no_python_are_the_data_s_fault(wrong: str) -> None:
    with pytest.raises(ValueError, match="the tests of f cannot be run"):
        run("def f():\n    return 1", wrong)


def test_tests_that_hand_over_code_are_refused() -> None:
    with pytest.raises(ValueError, match="a function is no data"):
        run("def f(g):\n    return g()", "assert f(lambda: 1) == 1")


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"memory": -1}, {"workers": 0}])
def test_limits_must_be_positive(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="give positive numbers"):
        run_programs([Program("", "", ())], **limits)  # type: ignore[arg-type]


def test_a_machine_that_confines_says_whether_it_hides_files() -> None:
    assert check_sandbox() in (True, False)


def test_where_nothing_can_be_confined_no_program_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "START", "import sys; sys.modules['ctypes'] = None\n" + runner.START)
    with pytest.raises(SandboxUnavailable, match=r"so none is run: .*ctypes"):
        run(f"open({str(tmp_path / 'ran')!r}, 'w')", "")
    assert not (tmp_path / "ran").exists()


def test_on_a_machine_whose_system_calls_are_not_known_no_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    system = os.uname()
    monkeypatch.setattr(os, "uname", lambda: type(system)((*system[:4], "riscv64")))
    with pytest.raises(SandboxUnavailable, match="riscv64: evaluate code on Linux, on x86_64 or aarch64"):
        run("def f():\n    return 1", "")
