"""Corpora from the Hugging Face hub, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import Document, write_splits

if TYPE_CHECKING:
    from cpt_lab.specs import HubCorpus
    from cpt_lab.store import Workspace


def build_corpus(spec: HubCorpus, work: Workspace) -> None:
    """Write the documents of the data set's split as train.jsonl; the hub's other splits are corpora of their own.

    ValueError if the data set cannot be reached, or has no such field.
    """
    write_splits(work.product, {"train": documents(spec)}, {"id": spec.id, "revision": spec.revision})


def documents(spec: HubCorpus) -> Iterator[Document]:
    """The documents one by one, as they come over the network."""
    for row in open_stream(spec):
        if spec.field not in row:
            raise ValueError(f"data set {spec.id} has no field {spec.field!r}: its fields are {', '.join(sorted(row))}")
        yield {"text": row[spec.field]}


def open_stream(spec: HubCorpus) -> Any:
    """The data set as an iterable of rows; ValueError if the hub or the data set cannot be reached."""
    from datasets import load_dataset

    try:
        return load_dataset(spec.id, name=spec.config, data_files=spec.data_files, revision=spec.revision, split=spec.split, streaming=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"data set {spec.id} ({spec.revision}) could not be reached on the hub: give a network, or its files as a files_corpus"
        ) from error
