"""A store that belongs to somebody else can be looked at by everyone, and nobody else's command changes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import made_up_study as made
import toys
from processes import PATIENCE, ROOT, UNPRIVILEGED
from spec_cases import INST, MATH

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished study, and one that waits to be built, for which there is no permission to write."""
    root = tmp_path_factory.mktemp("theirs") / "results"
    made.finish(*made.make(root))
    toys.told(root, [MATH, INST])
    for path in [root, *root.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield root
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def cpt_lab(results: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m cpt_lab WORDS` by one who may not write there."""
    command = [*UNPRIVILEGED, sys.executable, "-m", "cpt_lab", *words, f"results={results}"]
    before = files(results)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=PATIENCE)
    assert files(results) == before
    return done


def files(results: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in results.rglob("*")}


def test_the_permissions_hold_for_whoever_runs_these_tests(results: Path) -> None:
    attempt = [*UNPRIVILEGED, sys.executable, "-c", "import sys; open(sys.argv[1], 'w')", str(results / "new")]
    assert "PermissionError" in subprocess.run(attempt, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "made_up"), "study made_up: 20 points: 20 done"),
        (("status", "toys"), "2 queued"),
        (("wait", "made_up"), "20 done"),
        (("compare", "made_up", "delta_norm-ascending"), "difference to the first"),
        (("logs", "made_up", "delta_norm-ascending", "0.5"), "nothing was logged"),
        (("gc",), "nothing was deleted"),
    ],
)
def test_it_can_be_looked_at(results: Path, words: tuple[str, ...], said: str) -> None:
    done = cpt_lab(results, *words)
    assert said in done.stdout + done.stderr
    assert "Permission denied" not in done.stderr


@pytest.mark.parametrize("words", [("+experiment=quickstart",), ("cancel", "toys"), ("track", "init")])
def test_what_would_change_it_is_refused_in_one_sentence(results: Path, words: tuple[str, ...]) -> None:
    done = cpt_lab(results, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Permission denied" in done.stderr or "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
