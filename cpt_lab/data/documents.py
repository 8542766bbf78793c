"""Documents of a corpus on disk: one jsonl file per split, each line an object with a `text`, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "test")
Document = dict[str, str]


def write_splits(folder: Path, splits: Mapping[str, Iterable[Document]], facts: Mapping[str, Any]) -> None:
    """Write `<split>.jsonl` for every split, and manifest.json: the number of documents per split, and `facts`."""
    counts = {}
    for split, documents in splits.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            counts[split] = sum(1 for document in documents if file.write(json.dumps(document, ensure_ascii=False) + "\n"))
    (folder / "manifest.json").write_text(json.dumps({"documents": counts, **facts}, indent=1))


def read_documents(corpus: Path, split: str) -> Iterator[Document]:
    """The documents of a split in order; KeyError if the corpus has no such split."""
    path = corpus / f"{split}.jsonl"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in corpus.glob("*.jsonl")))
        raise KeyError(f"no split {split!r} in corpus folder {corpus}; it has {known or 'none'}")
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def read_manifest(corpus: Path) -> dict[str, Any]:
    """The manifest of a corpus or of a token file."""
    manifest: dict[str, Any] = json.loads((corpus / "manifest.json").read_text())
    return manifest
