"""What a command is refused with, for tests."""

from __future__ import annotations

from pathlib import Path

from command_line import here

REWIND = ("target=evaluate", "intervention=rewind", "criterion=random")


def refusal(tmp_path: Path, *words: str, verb: str = "plan", **environment: str) -> str:
    """What a command is refused with; nothing may have been started by it."""
    said = here(verb, f"results={tmp_path / 'results'}", "tracking=off", *words, **environment).refusal
    assert not (tmp_path / "results" / "launches").exists()
    return said


def folders(tuned: Path, base: Path) -> tuple[str, ...]:
    return ("tuned.from=folder", f"tuned.path={tuned}", "base.from=folder", f"base.path={base}")
