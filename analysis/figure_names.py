"""What figures are called, without importing one: a plan must know no more of them."""

from __future__ import annotations

from pathlib import Path


def names() -> list[str]:
    """The names that `figures:` of an experiment may have: the modules of `analysis/figures`, which are the entries of its REGISTRY."""
    return sorted(path.stem for path in (Path(__file__).parent / "figures").glob("*.py") if path.stem != "__init__")
