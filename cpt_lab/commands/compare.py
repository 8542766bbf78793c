"""`compare STUDY [WORD ...]`: points of one study side by side; `compare A B[@FOLDER]`: studies, of other results folders too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cpt_lab import study
from cpt_lab.names import unknown
from cpt_lab.store import Store
from cpt_lab.study import Study

FORMATS = ("text", "markdown", "latex", "csv")
FORMAT = "format="


def run(given: Sequence[str], store: Store) -> int:
    """Print the comparison; KeyError for an unknown study or format, ValueError in one sentence where nothing can be compared."""
    how = format_of(given)
    words = [word for word in given if not word.removeprefix("--").startswith((FORMAT, "results=")) and not word.startswith("-")]
    first, *rest = words
    one = _study(store, first)
    others = [word for word in rest if _is_study(store, word, one[1])]
    if others:
        return _across(store, [first, *others], [word for word in rest if word not in others], how)
    show(*one, rest, how)
    return 0


def show(store: Store, asked: Study, words: Sequence[str], how: str = "text") -> None:
    """Print the points of one study that have one of these names, or all the words in theirs."""
    from analysis import compare

    named = [point for point in asked.points if point.name in words]
    chosen = named or [point for point in asked.points if all(word in point.name.split() for word in words)]
    if len(chosen) < 2:
        raise ValueError(f"compare needs two points or more, and {len(chosen)} of study {asked.name} have {list(words)} in their name")
    write = {"text": compare.text, "markdown": compare.markdown, "latex": compare.latex, "csv": compare.csv}
    print(write[how](compare.compare(store, chosen)), end="" if how != "text" else "\n")


def format_of(given: Sequence[str]) -> str:
    """The last `format=`, with or without dashes; KeyError for one that there is not."""
    asked = [word.removeprefix("--").removeprefix(FORMAT) for word in given if word.removeprefix("--").startswith(FORMAT)]
    how = asked[-1] if asked else FORMATS[0]
    if how not in FORMATS:
        raise KeyError(unknown("format", how, FORMATS))
    return how


def _across(store: Store, names: Sequence[str], words: Sequence[str], how: str) -> int:
    from analysis import sheets
    from analysis.across import Side, across
    from analysis.results import Results

    found = [_study(store, name) for name in names]
    sheet = across([Side(name, Results(where, [asked])) for name, (where, asked) in zip(names, found, strict=True)], words)
    write = {"text": sheets.text, "markdown": sheets.markdown, "latex": sheets.latex, "csv": sheets.csv}
    print(write[how](sheet), end="")
    return 0


def _study(store: Store, word: str) -> tuple[Store, Study]:
    """The study of `NAME` or `NAME@FOLDER`; KeyError with what there is."""
    name, _, folder = word.partition("@")
    where = Store(Path(folder).expanduser()) if folder else store
    return where, study.load(where, name)


def _is_study(store: Store, word: str, first: Study) -> bool:
    """Whether a word means another study: it says where, or is the name of one and in no name of the first's points."""
    if "@" in word:
        return not any(word == point.name for point in first.points)
    return word in study.names(store) and not any(word in point.name.split() for point in first.points)
