"""The words after a verb: names, the flags that the verb knows, and where the results are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_lab.names import unknown
from cpt_lab.store import Store

RESULTS = "results="
OPTIONS_WITH_VALUE = frozenset(
    ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package", "-p", "--experimental-rerun")
)


@dataclass(frozen=True)
class Words:
    """What was typed after a verb."""

    names: tuple[str, ...]
    flags: frozenset[str]
    results: Path

    @property
    def store(self) -> Store:
        return Store(self.results)

    def one(self, verb: str) -> str:
        """The only name; ValueError if there is none or more."""
        if len(self.names) != 1:
            raise ValueError(f"{verb} {' '.join(self.names)}: give the name of one study, as in `{verb} rewind_7b`")
        return self.names[0]


def parse(verb: str, given: Sequence[str], flags: Sequence[str] = ()) -> Words:
    """The words of a verb; KeyError for a flag that it does not know."""
    options = [word for word in given if word.startswith("-")]
    for option in options:
        if option not in flags:
            raise KeyError(unknown(f"option of {verb}", option, flags) if flags else f"{verb} knows no options, and {option!r} is one")
    names = tuple(word for word in given if not word.startswith(("-", RESULTS)))
    return Words(names, frozenset(options), results(given))


def results(given: Sequence[str]) -> Path:
    """The results folder that is meant: the last `results=`, or CPT_LAB_RESULTS, or `results`."""
    named = [word.removeprefix(RESULTS).strip("'\"") for word in given if word.startswith(RESULTS)]
    return Path(named[-1] if named else os.environ.get("CPT_LAB_RESULTS", "results")).expanduser().absolute()


def divided(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Bare names, overrides, and Hydra's options with their values: its parser wants the overrides in one piece."""
    names: list[str] = []
    overrides: list[str] = []
    options: list[str] = []
    following = False
    for word in words:
        if following or word.startswith("-"):
            options.append(word)
            following = word in OPTIONS_WITH_VALUE
        else:
            (overrides if "=" in word or word.startswith("~") else names).append(word)
    return names, overrides, options
