"""The `code` corpus: sources of Python's standard library, cut between top-level statements; and the list of these files."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab.data.documents import Document

if TYPE_CHECKING:
    import numpy as np

# Tests, demonstrations and generated tables say little about how people write code, and half of them are not in every installation.
LEFT_OUT = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "site-packages",
        "dist-packages",
        "encodings",
        "pydoc_data",
        "__pycache__",
    }
)
SHORTEST, LONGEST = 80, 4000  # characters of a document


def documents(generator: np.random.Generator, wanted: int) -> Iterator[Document]:
    """Top-level functions, classes and runs of statements of the standard library, in random order."""
    del wanted  # all there is
    pieces = [piece for path in library_files() for piece in top_level_pieces(path.read_text(encoding="utf-8", errors="replace"))]
    for index in generator.permutation(len(pieces)):
        yield {"text": pieces[index]}


def library_files() -> list[Path]:
    """The Python files of the standard library, by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts))


def top_level_pieces(source: str) -> Iterator[str]:
    """The source between the starts of top-level functions and classes; nothing if it does not parse."""
    tree = parsed(source)
    if tree is None:
        return
    lines = source.splitlines(keepends=True)
    starts = [0, *(first_line(node) - 1 for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)), len(lines)]
    for start, stop in pairwise(starts):
        piece = "".join(lines[start:stop]).strip()
        if SHORTEST <= len(piece) <= LONGEST:
            yield piece


def parsed(source: str) -> ast.Module | None:
    """The syntax tree, or None: the library ships a few files that are wrong on purpose."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in string literals
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError):
            return None


def first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    """The line where a definition starts, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
