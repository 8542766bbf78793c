"""Corpora from local jsonl files, identified by what the files hold and not by where they lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab.data.documents import Document, write_splits

if TYPE_CHECKING:
    from cpt_lab.specs import FilesCorpus
    from cpt_lab.store import Workspace


def build_corpus(spec: FilesCorpus, work: Workspace) -> None:
    """Write the distinct texts of the files in a random order drawn from `spec.seed`, `held_out` each to validation and test.

    ValueError for files that changed since their digest was taken, lines that are no object with the text field, or too few documents.
    """
    import numpy as np

    found = files_digest(spec.files)
    if found != spec.files_digest:
        raise ValueError(f"corpus {spec.name}: its files have digest {found}, not files_digest {spec.files_digest}: give the new one")
    texts = list(dict.fromkeys(text for file in spec.files for text in read_texts(Path(file), spec.field)))
    if len(texts) <= 2 * spec.held_out:
        raise ValueError(
            f"corpus {spec.name} has {len(texts)} different documents, too few to hold out {spec.held_out} each for validation and test: "
            f"give held_out below {max(len(texts) // 2, 1)}"
        )
    order = np.random.default_rng(spec.seed).permutation(len(texts))
    documents: list[Document] = [{"text": texts[index]} for index in order]
    test, validation = documents[: spec.held_out], documents[spec.held_out : 2 * spec.held_out]
    write_splits(work.product, {"train": documents[2 * spec.held_out :], "validation": validation, "test": test}, {})


def files_digest(files: Sequence[str]) -> str:
    """SHA-256 over the files' own SHA-256, in order: the identity of their contents. ValueError if one cannot be read."""
    total = hashlib.sha256()
    for file in files:
        try:
            with Path(file).expanduser().open("rb") as handle:
                total.update(hashlib.file_digest(handle, "sha256").digest())
        except OSError as error:
            raise ValueError(f"corpus file {file} cannot be read ({error.strerror}): give the path of a jsonl file") from None
    return total.hexdigest()


def read_texts(file: Path, field: str) -> Iterator[str]:
    """The text of every line; ValueError naming file and line of the first that has none."""
    with file.expanduser().open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[field]
            except (json.JSONDecodeError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise ValueError(f"line {number} of {file} is no JSON object with a text in {field!r}: one object a line is needed")
            yield text
