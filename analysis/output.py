"""Figures and tables as files, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from analysis import interactive, printed, sheets
from analysis.drawing import Drawing, Sheet
from cpt_lab.store import write_atomically


def write(drawn: Iterable[Drawing | Sheet], folder: Path) -> list[Path]:
    """Write NAME.png, .pdf, .html and .csv of drawings and NAME.csv, .md, .tex and .html of tables; their paths.

    The script that the pages of drawings share is written beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = list(drawn)
    if any(isinstance(each, Drawing) for each in drawn):
        _share(folder / interactive.LIBRARY)
    found = {folder / f"{each.name}.{suffix}": content for each in drawn for suffix, content in files(each).items()}
    for path, content in found.items():
        write_atomically(path, content)
    return list(found)


def files(drawn: Drawing | Sheet) -> dict[str, bytes]:
    """Suffix -> content; the same drawing gives the same bytes."""
    if isinstance(drawn, Drawing):
        return {**printed.files(drawn), "html": interactive.page(drawn).encode(), "csv": drawn.data().to_csv(index=False).encode()}
    texts = {"csv": sheets.csv(drawn), "md": sheets.markdown(drawn), "tex": sheets.latex(drawn), "html": sheets.page(drawn)}
    return {suffix: text.encode() for suffix, text in texts.items()}


def _share(path: Path) -> None:
    """Plotly's script, written once; another version's is replaced."""
    from plotly.offline import get_plotlyjs

    content = get_plotlyjs().encode()
    if not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
