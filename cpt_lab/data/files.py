"""Corpora from local files, identified by what the files hold and not by where they lie. Their texts stay where they are."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import ELSEWHERE, write_splits
from cpt_lab.data.shards import Group, Shard, all_texts, grouped, shards_of_file, text_digest
from cpt_lab.weights import file_digest

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.data.executor import Progress
    from cpt_lab.specs import FilesCorpus
    from cpt_lab.store import Workspace

KEPT = "kept"  # beside shards.json: per shard, which of its documents are in the train split


def build_corpus(spec: FilesCorpus, work: Workspace, *, processes: int = 1) -> None:
    """Write validation.jsonl and test.jsonl, and shards.json: the rest, in the order of the files, is the train split.

    `held_out` documents each are drawn from `spec.seed`, for validation and for test; of texts that stand twice the first one counts.
    ValueError for files that changed since their digest was taken, that cannot be read to their end, rows without a text, or too few
    documents.
    """
    import numpy as np

    found = files_digest(spec.files)
    if found != spec.files_digest:
        raise ValueError(f"corpus {spec.name}: its files have digest {found}, not files_digest {spec.files_digest}: give the new one")
    shards = [shard for file in spec.files for shard in shards_of_file(_absolute(file), field=spec.field, rules=spec.filter or ())]
    digests = _digests(shards, processes, work.scratch, work.progress)
    sizes = [len(digest) for digest in digests]
    everything = np.concatenate(digests)
    first = np.sort(np.unique(everything, return_index=True)[1])
    if len(first) <= 2 * spec.held_out:
        raise ValueError(
            f"corpus {spec.name} has {len(first)} different documents, too few to hold out {spec.held_out} each for validation and test: "
            f"give held_out below {max(len(first) // 2, 1)}"
        )
    drawn = np.random.default_rng(spec.seed).choice(first, 2 * spec.held_out, replace=False)
    flags = np.zeros(len(everything), dtype=bool)
    flags[np.setdiff1d(first, drawn)] = True
    texts = _texts_at(shards, sizes, set(drawn.tolist()))
    held = {"test": drawn[: spec.held_out], "validation": drawn[spec.held_out :]}
    facts = {"repeated": len(everything) - len(first), "files_digest": found, "licence": spec.licence}
    write_splits(work.product, {split: ({"text": texts[place]} for place in places.tolist()) for split, places in held.items()}, facts)
    _note_documents(work.product, int(flags.sum()))
    _write_shards(work.product, shards, digests, np.split(flags, np.cumsum(sizes)[:-1]))


def files_digest(files: Sequence[str]) -> str:
    """SHA-256 over the files' own SHA-256, in order: the identity of their contents. ValueError if one cannot be read."""
    total = hashlib.sha256()
    for file in files:
        try:
            total.update(bytes.fromhex(file_digest(Path(_absolute(file)))))
        except OSError as error:
            raise ValueError(f"corpus file {file} cannot be read ({error.strerror}): give the path of a file of documents") from None
    return total.hexdigest()


@dataclass(frozen=True)
class Digests:
    """The step that writes the digests of a group's documents: one array per shard, documents x 16 bytes."""

    scratch: Path

    def work(self, group: Group, rank: int) -> None:
        import numpy as np

        found = {str(index): as_array([text_digest(text) for text in all_texts(shard)]) for index, shard in enumerate(group)}
        beside = self.scratch / f".{rank}.npz"
        np.savez(beside, **found)  # type: ignore[arg-type]  # numpy's stub knows no arrays by name
        os.replace(beside, self.scratch / f"{rank}.npz")


def as_array(digests: Sequence[bytes]) -> np.ndarray:
    """Digests as an array that can be sorted; all have 16 bytes, so that the zeros which numpy takes for padding tell none apart."""
    import numpy as np

    return np.frombuffer(b"".join(digests), dtype="S16") if digests else np.empty(0, dtype="S16")


def _digests(shards: Sequence[Shard], processes: int, scratch: Path, progress: Progress) -> list[np.ndarray]:
    """The digests of every shard's documents."""
    import numpy as np

    from cpt_lab.data import executor

    groups = grouped(shards)
    executor.run(Digests(scratch), groups, processes=processes, scratch=scratch, progress=progress)
    found = []
    for rank, group in enumerate(groups):
        with np.load(scratch / f"{rank}.npz") as arrays:
            found += [arrays[str(index)] for index in range(len(group))]
    return found


def _texts_at(shards: Sequence[Shard], sizes: Sequence[int], places: set[int]) -> dict[int, str]:
    """Place in the whole corpus -> text."""
    found: dict[int, str] = {}
    start = 0
    for shard, size in zip(shards, sizes, strict=True):
        if any(start <= place < start + size for place in places):
            found |= {start + index: text for index, text in enumerate(all_texts(shard)) if start + index in places}
        start += size
    return found


def _write_shards(folder: Path, shards: Sequence[Shard], digests: Sequence[np.ndarray], flags: Sequence[np.ndarray]) -> None:
    """shards.json, and a file of flags for each shard."""
    import numpy as np

    (folder / KEPT).mkdir()
    listed = []
    for index, (shard, digest, kept) in enumerate(zip(shards, digests, flags, strict=True)):
        name = f"{KEPT}/{index:06d}.npy"
        np.save(folder / name, kept)
        listed.append(replace(shard, kept=name, digest=hashlib.sha256(digest.tobytes()).hexdigest()).as_json())
    (folder / ELSEWHERE).write_text(json.dumps(listed, indent=1))


def _note_documents(folder: Path, train: int) -> None:
    """Set the number of the train split's documents, which stay in their files."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    manifest["documents"] = {"train": train, **manifest["documents"]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _absolute(file: str) -> str:
    return str(Path(file).expanduser().absolute())
