"""The `text` corpus: prose about Python, from the language reference that ships with it and from the library's docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_lab.data.documents import Document
from cpt_lab.data.sources import library_files, parsed

if TYPE_CHECKING:
    import numpy as np

SHORTEST, LONGEST = 60, 600  # characters of a document: a paragraph or two
LETTERS_AT_LEAST = 0.7  # of a paragraph that counts as prose: tables, examples and signatures have fewer


def documents(generator: np.random.Generator, wanted: int) -> Iterator[Document]:
    """Paragraphs of prose in random order."""
    del wanted  # all there is
    paragraphs = [paragraph for text in texts() for paragraph in prose_of(text)]
    for index in generator.permutation(len(paragraphs)):
        yield {"text": paragraphs[index]}


def texts() -> Iterator[str]:
    """The topics of the language reference and every docstring of the library, read without importing the modules."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    for path in library_files():
        tree = parsed(path.read_text(encoding="utf-8", errors="replace"))
        if tree is None:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def prose_of(text: str) -> Iterator[str]:
    """The paragraphs of a text that read as prose, each on one line."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        if SHORTEST <= len(paragraph) <= LONGEST and letters >= LETTERS_AT_LEAST * len(paragraph) and paragraph[-1] in ".:!?":
            yield paragraph
