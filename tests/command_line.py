"""The command line for tests: in this process, which is fast, or in one of its own, as users have it."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from cpt_lab import app
from quick_hydra import quick


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one sentence of a refused command; AssertionError if it did not end as bad input must."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert self.err.startswith("error: "), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.out + self.err
        return self.err.removeprefix("error: ").strip()


def here(*words: str, **environment: str) -> Answer:
    """`python -m cpt_lab WORDS` in this process; what it changes of the process is put back."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(sys, "argv", ["cpt_lab"]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        quick(),
    ):
        os.environ.pop("CPT_LAB_COMMAND", None)
        try:
            app.run(list(words))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
    return Answer(code, out.getvalue(), err.getvalue())


def there(*words: str, cwd: Path, environment: Mapping[str, str] | None = None) -> Answer:
    """`python -m cpt_lab WORDS` in a process of its own, in a folder of its own."""
    command = [sys.executable, "-m", "cpt_lab", *words]
    place = {**os.environ, "COLUMNS": "200", **(environment or {})}
    done = subprocess.run(command, cwd=cwd, env=place, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)
