"""The built-in corpora: `text`, `code`, `math` and `inst`, made on the spot from Python itself and from two generators."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cpt_lab.data import arithmetic, passages, prose, sources
from cpt_lab.data.documents import Document, write_splits

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.specs import BuiltinCorpus
    from cpt_lab.store import Workspace


def build_corpus(spec: BuiltinCorpus, work: Workspace) -> None:
    """Write train, validation and test documents; no text stands in two splits or twice in one.

    ValueError for text and code of another version of Python, or if the corpus cannot give `held_out` documents to validation and test
    and still have one to train on.
    """
    import numpy as np

    if spec.python not in ("", platform.python_version()):
        raise ValueError(
            f"corpus {spec.name} is that of Python {spec.python}, and this is {platform.python_version()}: use that version, or launch anew"
        )
    generator = np.random.default_rng(spec.seed)
    wanted = spec.documents + 2 * spec.held_out
    documents = distinct(CORPORA[spec.name](generator, wanted), wanted)
    if len(documents) <= 2 * spec.held_out:
        raise ValueError(
            f"corpus {spec.name} has {len(documents)} documents, too few to hold out {spec.held_out} each for validation and test: "
            f"give held_out below {len(documents) // 2}"
        )
    test, validation = documents[: spec.held_out], documents[spec.held_out : 2 * spec.held_out]
    splits = {"train": documents[2 * spec.held_out :], "validation": validation, "test": test}
    write_splits(work.product, splits, {"python": spec.python})


def distinct(documents: Iterable[Document], wanted: int) -> list[Document]:
    """The first `wanted` documents whose questions, or texts where there is none, differ in more than blanks and case."""
    found: dict[str, Document] = {}
    for document in documents:
        if len(found) == wanted:
            break
        found.setdefault(" ".join(document.get("question", document["text"]).lower().split()), document)
    return list(found.values())


# A maker takes the generator and how many documents are wanted; it may give fewer, or go on for longer than anyone reads.
CORPORA: dict[str, Callable[[np.random.Generator, int], Iterable[Document]]] = {
    "text": prose.documents,
    "code": sources.documents,
    "math": arithmetic.documents,
    "inst": passages.documents,
}
