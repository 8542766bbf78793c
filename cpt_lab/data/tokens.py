"""Token files: one split of a corpus as flat, headerless arrays of token ids, and what is needed to trust them."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import read_manifest, shards
from cpt_lab.data.shards import Group, grouped, texts

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.specs import Part, Tokens
    from cpt_lab.store import Workspace

FILE = "tokens.npy"  # OLMo-core's name for such files, although they have no numpy header
LEFT_OUT = "overlaps"  # of a contamination report: per group, which of its documents overlap
BATCH = 1000  # documents encoded at once
BLOCK = 1 << 24  # bytes copied at once
LARGEST_UINT16 = 2**16


@dataclass(frozen=True)
class Encode:
    """The step that writes the tokens of a group, and a json file beside them that says how many; nothing if `enough` are there before."""

    scratch: Path
    dtype: str
    eos: int
    enough: int | None = None  # tokens: what comes after so many of them is not needed
    left_out: Path | None = None

    def work(self, group: Group, rank: int) -> None:
        import numpy as np

        if self.enough is not None and bytes_before(self.scratch, rank) >= self.enough * np.dtype(self.dtype).itemsize:
            return
        if self.left_out is not None and not (self.left_out / f"{rank}.npy").exists():
            return  # the report had enough before it; here earlier groups may be under way yet, and `join` says so if it is needed
        encoder = _encoder(str(self.scratch / "tokenizer.json"))
        dropped = np.load(self.left_out / f"{rank}.npy").tolist() if self.left_out is not None else []
        kept_before = [place - earlier for earlier, place in enumerate(dropped)]  # for whoever takes the first documents alone
        facts: dict[str, Any] = {"documents": 0, "tokens": 0, "dropped": len(dropped), "kept_before": kept_before}
        dropped = set(dropped)
        beside = self.scratch / f".{rank}.npy"
        with beside.open("wb") as file:
            for batch in batches(kept for index, kept in enumerate(texts_of(group)) if index not in dropped):
                encoded = encoder.encode_batch_fast(batch, add_special_tokens=False)
                chunk = np.concatenate([np.array([*one.ids, self.eos], dtype=self.dtype) for one in encoded])
                chunk.tofile(file)
                facts["documents"] += len(batch)
                facts["tokens"] += len(chunk)
        os.replace(beside, self.scratch / f"{rank}.npy")
        _write_json(self.scratch / f"{rank}.json", facts)


def build_tokens(
    spec: Tokens, corpus: Path, tokenizer: Path, work: Workspace, *, contamination: Path | None = None, processes: int = 1
) -> None:
    """Write tokens.npy (uint16, or uint32 where the vocabulary needs it; EOS after each document) and manifest.json.

    The work is shared out to processes, which never changes a byte of the result, and taken up again after an interruption. The manifest
    holds documents, tokens, dtype, vocab_size, eos, sha256, tokenizer_sha256, how many documents were dropped for their overlap with test
    items, and the manifest of the corpus. ValueError if the tokenizer has no EOS, or the split no documents.
    """
    import numpy as np

    from cpt_lab.data import executor

    encoder = load_encoder(spec, tokenizer)
    eos, vocabulary = int(encoder.eos_token_id), len(encoder)
    dtype = np.uint16 if vocabulary <= LARGEST_UINT16 else np.uint32
    groups = grouped(shards(corpus, spec.split))
    scratch, enough = work.scratch, getattr(spec.corpus, "sample_tokens", None) if spec.split == "train" else None
    left_out = contamination / LEFT_OUT if contamination is not None else None
    step = Encode(scratch, np.dtype(dtype).name, eos, enough, left_out)
    executor.prepare(groups, scratch)
    backend = encoder.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.save(str(scratch / "tokenizer.json"))
    _encoder.cache_clear()  # another build of this process may have had another tokenizer there
    executor.run(step, groups, processes=processes, scratch=scratch, progress=work.progress)
    facts = join(scratch, len(groups), work.product / FILE, dtype=step.dtype, eos=eos, enough=enough)
    if not facts["documents"]:
        raise ValueError(f"split {spec.split} of corpus {spec.corpus.name} has no documents: look at its files, its field and its filter")
    known = {"dtype": step.dtype, "vocab_size": vocabulary, "eos": eos, "tokenizer_sha256": file_digest(tokenizer / "tokenizer.json")}
    _write_json(work.product / "manifest.json", facts | known | {"corpus": read_manifest(corpus)})


def load_encoder(spec: Tokens, tokenizer: Path) -> Any:
    """The tokenizer as transformers loads it; ValueError if it has no EOS."""
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(tokenizer)
    if encoder.eos_token_id is None:
        raise ValueError(f"tokenizer {spec.tokenizer.label()} has no end-of-text token: choose one that has")
    return encoder


def join(scratch: Path, groups: int, path: Path, *, dtype: str, eos: int, enough: int | None) -> dict[str, Any]:
    """Write the tokens of all groups, in order, into one file, up to the document that holds token `enough`; counts and digest.

    Dropped are the documents that would stand in the file, before its last one.

    ValueError if a group is needed that the contamination report has not looked through.
    """
    import numpy as np

    facts: dict[str, Any] = {"documents": 0, "tokens": 0, "dropped": 0}
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for rank in range(groups):
            if enough is not None and facts["tokens"] >= enough:
                break
            if not (scratch / f"{rank}.json").exists():
                raise ValueError(
                    f"the contamination report says nothing of piece {rank} of the corpus, for its words have fewer tokens than one each: "
                    "raise sample_tokens"
                )
            counts = json.loads((scratch / f"{rank}.json").read_text())
            found = np.fromfile(scratch / f"{rank}.npy", dtype=dtype)
            if enough is not None and facts["tokens"] + len(found) >= enough:
                found = found[: _last_document(found, enough - facts["tokens"], eos)]
                documents = int((found == eos).sum())
                counts |= {"documents": documents, "tokens": len(found), "dropped": bisect_left(counts["kept_before"], documents)}
            found.tofile(file)
            digest.update(found.data)
            facts |= {name: facts[name] + counts[name] for name in ("documents", "tokens", "dropped")}
    return facts | {"sha256": digest.hexdigest()}


def bytes_before(scratch: Path, rank: int) -> int:
    """How many bytes of earlier groups' tokens are there already."""
    found = (scratch / f"{earlier}.npy" for earlier in range(rank))
    return sum(path.stat().st_size for path in found if path.exists())


def texts_of(group: Group) -> Iterator[str]:
    """The documents of a group in order."""
    return (text for shard in group for text in texts(shard))


def read_tokens(folder: Path, *, tokenizer: Path | None = None) -> np.ndarray:
    """The token ids, mapped from the file read-only, 1-D; of several files one after the other, in memory.

    ValueError if a file is not as long as the manifest says, if the digest is not the manifest's, or if it was made with another
    tokenizer than the one given.
    """
    import numpy as np

    manifest = read_manifest(folder)
    paths = token_paths(folder)
    for path, file in zip(paths, _files(manifest), strict=True):
        if file_digest(path) != file["sha256"]:
            raise ValueError(f"token file {path} has changed since it was made: delete its folder to make it again")
    if tokenizer is not None and file_digest(tokenizer / "tokenizer.json") != manifest["tokenizer_sha256"]:
        raise ValueError(f"token file {folder / FILE} was made with another tokenizer than {tokenizer}: delete its folder to make it again")
    arrays = [np.memmap(path, dtype=manifest["dtype"], mode="r") for path in paths]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def token_paths(folder: Path) -> list[Path]:
    """The files of a token product, in order; ValueError if one is empty, cut off, or gone."""
    manifest = read_manifest(folder)
    size = int(manifest["dtype"].removeprefix("uint")) // 8
    for file in _files(manifest):
        path = folder / file["path"]
        found = path.stat().st_size if path.exists() else None
        if found != size * file["tokens"]:
            has = "is gone" if found is None else f"has {found:,} bytes"
            raise ValueError(
                f"token file {path} {has}, and its {file['tokens']:,} tokens of {size} bytes take {size * file['tokens']:,}: "
                "it was cut off or replaced; put it back, or delete its folder to make it again"
            )
    return [folder / file["path"] for file in _files(manifest)]


def available_tokens(folder: Path) -> int:
    """How many tokens the whole documents of the files have, EOS included."""
    return int(read_manifest(folder)["tokens"])


def check_budget(part: Part, available: int, *, unended: int = 0) -> None:
    """ValueError if the part asks for more tokens than whole documents have, unless it may repeat them; `unended` come after the last."""
    if part.tokens > available and not part.oversample:
        beside = f", and {unended:,} after its last end of text, which are no document" if unended else ""
        raise ValueError(
            f"the mixture asks for {part.tokens:,} tokens of corpus {part.corpus.name}, which has {available:,}{beside}: "
            "lower the tokens or set oversample: true to repeat it"
        )


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """The texts in lists of BATCH."""
    while batch := list(islice(texts, BATCH)):
        yield batch


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def _encoder(path: str) -> Any:
    """The tokenizer of a file: once per process, for a large one takes half a second."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(path)
    encoder.encode_special_tokens = True  # EOS in a text is a word about EOS, and ends no document
    return encoder


def _files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Path, tokens and digest of each file of a token product."""
    own = {"path": FILE, "tokens": manifest["tokens"], "sha256": manifest["sha256"]}
    return list(manifest.get("files") or [own])


def _last_document(tokens: np.ndarray, wanted: int, eos: int) -> int:
    """Where the document ends that holds token number `wanted`."""
    import numpy as np

    ends = np.flatnonzero(tokens == eos) + 1
    return int(ends[int(np.searchsorted(ends, wanted))])


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    """Whole or not at all: an interrupted run goes by these files."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(json.dumps(facts, indent=1))
    os.replace(beside, path)
