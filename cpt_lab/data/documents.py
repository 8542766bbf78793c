"""Documents of a corpus on disk: a split is a jsonl file, each line an object with a `text`, or a list of shards that lie elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cpt_lab.data.shards import Shard, shards_of_file, texts

SPLITS = ("train", "validation", "test")
ELSEWHERE = "shards.json"  # of the train split, where its documents stay in their own files
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
        yield from ({"text": text} for shard in shards(corpus, split) for text in texts(shard))
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def shards(corpus: Path, split: str) -> list[Shard]:
    """The shards of a split in order; KeyError if the corpus has no such split, or holds tokens and no documents."""
    path = corpus / f"{split}.jsonl"
    if path.exists():
        return shards_of_file(str(path))
    if split == "train" and (corpus / ELSEWHERE).exists():
        return [Shard.from_json(data).beside(corpus) for data in json.loads((corpus / ELSEWHERE).read_text())]
    if "dtype" in read_manifest(corpus):
        raise KeyError(f"corpus folder {corpus} holds token files and no documents: choose a corpus of texts")
    known = sorted({file.stem for file in corpus.glob("*.jsonl")} | ({"train"} if (corpus / ELSEWHERE).exists() else set()))
    raise KeyError(f"no split {split!r} in corpus folder {corpus}; it has {', '.join(known) or 'none'}")


def read_manifest(corpus: Path) -> dict[str, Any]:
    """The manifest of a corpus or of a token file; ValueError if it is not there or not whole."""
    try:
        manifest: dict[str, Any] = json.loads((corpus / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{corpus / 'manifest.json'} cannot be read ({error}): delete the folder to make it again") from None
    return manifest
