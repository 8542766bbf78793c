"""`figure STUDY [STUDY ...] [NAME ...] [KEY=VALUE ...]`: figures and tables of finished studies; `figure --list`: all that there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab import study
from cpt_lab.commands.words import Words
from cpt_lab.store import Store

if TYPE_CHECKING:
    from analysis.results import Results

LIST = "--list"
FLAGS = (LIST,)


def run(words: Words) -> int:
    """Draw what was asked for, or all that the studies can show; print the files. ValueError in one sentence for what cannot be drawn."""
    if LIST in words.flags:
        return show_list()
    studies, names, changes = divided(words.store, words.names)
    if not studies:
        raise ValueError("figure of which study? `figure STUDY [NAME ...] [KEY=VALUE ...]`; `figure --list` says what there is")
    from analysis import figures, output
    from analysis.results import Results

    results = Results(words.store, [study.load(words.store, name) for name in studies])
    folder = study.folder(words.store, results.name) / "figures"
    if not names:
        return _all(results, folder, changes)
    for name in names:
        for path in output.write(figures.build(name, results, changes), folder):
            print(f"figure: {path}")
    return 0


def show_list() -> int:
    """Every figure with what it shows, which of the papers' it is, and what a study must contain."""
    from analysis.figures import REGISTRY

    for name, figure in REGISTRY.items():
        papers = f" ({'; '.join(figure.PAPERS)})" if figure.PAPERS else ""
        print(f"{name}\n    {figure.SHOWS}{papers}\n    needs {figure.NEEDS}")
    return 0


def divided(store: Store, words: Sequence[str]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Studies, names of figures, settings; KeyError, with what is nearest, for a word that is none of them."""
    import yaml

    from analysis import figures

    changes = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in words if "=" in word)}
    bare = [word for word in words if "=" not in word]
    known = set(study.names(store))
    names = [word for word in bare if word not in known and (word in figures.REGISTRY or known.intersection(bare))]
    for name in names:
        figures.find(name)
    return [word for word in bare if word not in names], names, changes


def _all(results: Results, folder: Path, changes: dict[str, Any]) -> int:
    """Draw everything that these studies can show; 1 if that is nothing."""
    from analysis import figures, output

    if changes:
        raise ValueError(
            f"settings belong to a figure ({', '.join(changes)}): name it, as in `figure {results.name} rewind_curve errors=documents`"
        )
    shown, reasons = 0, []
    for name, drawn in figures.available(results):
        if isinstance(drawn, str):
            reasons.append(f"not drawn: {name}: {drawn}")
            continue
        shown += 1
        for path in output.write(drawn, folder):
            print(f"figure: {path}")
    print("\n".join(reasons))
    return 0 if shown else 1
