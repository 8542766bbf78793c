"""Task files of the harness, written and read back without a YAML library: every JSON text is YAML, but for the tag of functions."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from cpt_lab.evaluation.forms import FUNCTION


def write_task_file(path: Path, settings: dict[str, Any]) -> None:
    """Write a task file; names of functions get their tag."""
    text = json.dumps(settings, indent=1)
    path.write_text(re.sub(rf'"{FUNCTION}([\w.]+)"', rf"{FUNCTION}\1", text) + "\n")


def read_task_file(path: Path) -> dict[str, Any]:
    """The settings of a task file that `write_task_file` wrote, with the functions that it names."""
    text = re.sub(rf"(?<!\"){FUNCTION}([\w.]+)", rf'"{FUNCTION}\1"', path.read_text())
    settings: dict[str, Any] = _with_functions(json.loads(text))
    return settings


def _with_functions(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_functions(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_functions(item) for item in value]
    if isinstance(value, str) and value.startswith(FUNCTION):
        module, _, name = value.removeprefix(FUNCTION).rpartition(".")
        return getattr(import_module(module), name)
    return value
