"""Figures and tables of finished studies, from the store alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from analysis import head_map, rewind_curve

# name in `figures:` of an experiment -> (results, folder, title=...) -> the files written
FIGURES: dict[str, Callable[..., list[Path]]] = {"rewind_curve": rewind_curve.write, "head_map": head_map.write}
