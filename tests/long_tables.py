"""Long tables of alike cases: the first few are tried while writing, the rest by CI."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rest_slow(cases: Iterable[Any], *, fast: int, one_name: bool = False) -> list[Any]:
    """The cases, those after the first so many marked slow; with `one_name` a case that is a tuple is one argument."""
    found = list(cases)
    rest = (case if isinstance(case, tuple) and not one_name else (case,) for case in found[fast:])
    return [*found[:fast], *(pytest.param(*case, marks=pytest.mark.slow) for case in rest)]
