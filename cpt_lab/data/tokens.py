"""Token files: one split of a corpus as a flat, headerless array of token ids, and what is needed to trust it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab.data.documents import read_documents, read_manifest

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.specs import Part, Tokens
    from cpt_lab.store import Workspace

FILE = "tokens.npy"  # OLMo-core's name for such files, although they have no numpy header
BATCH = 1000  # documents encoded at once


def build_tokens(spec: Tokens, corpus: Path, tokenizer: Path, work: Workspace) -> None:
    """Write tokens.npy (uint16, or uint32 where the vocabulary needs it; EOS after each document) and manifest.json.

    The manifest holds documents, tokens, dtype, vocab_size, eos, sha256 and tokenizer_sha256. ValueError if the tokenizer has no EOS.
    """
    import numpy as np
    from transformers import AutoTokenizer

    encoder = AutoTokenizer.from_pretrained(tokenizer)
    if encoder.eos_token_id is None:
        raise ValueError(f"tokenizer {spec.tokenizer.label()} has no end-of-text token: choose one that has")
    dtype = np.uint16 if len(encoder) <= 2**16 else np.uint32
    digest, count, documents = hashlib.sha256(), 0, 0
    with (work.product / FILE).open("wb") as file:
        for texts in batches(text["text"] for text in read_documents(corpus, spec.split)):
            encoded = encoder(texts, add_special_tokens=False)["input_ids"]
            chunk = np.concatenate([[*ids, encoder.eos_token_id] for ids in encoded]).astype(dtype)
            file.write(chunk.tobytes())
            digest.update(chunk.tobytes())
            count, documents = count + len(chunk), documents + len(texts)
    facts = {
        "documents": documents,
        "tokens": count,
        "dtype": np.dtype(dtype).name,
        "vocab_size": len(encoder),
        "eos": encoder.eos_token_id,
        "sha256": digest.hexdigest(),
        "tokenizer_sha256": file_digest(tokenizer / "tokenizer.json"),
    }
    (work.product / "manifest.json").write_text(json.dumps(facts, indent=1))


def read_tokens(folder: Path, *, tokenizer: Path | None = None) -> np.ndarray:
    """The token ids, mapped from the file read-only, 1-D.

    ValueError if the file's digest is not the manifest's, or if it was made with another tokenizer than the one given.
    """
    import numpy as np

    manifest = read_manifest(folder)
    if file_digest(folder / FILE) != manifest["sha256"]:
        raise ValueError(f"token file {folder / FILE} has changed since it was made: delete its folder to make it again")
    if tokenizer is not None and file_digest(tokenizer / "tokenizer.json") != manifest["tokenizer_sha256"]:
        raise ValueError(f"token file {folder / FILE} was made with another tokenizer than {tokenizer}: delete its folder to make it again")
    return np.memmap(folder / FILE, dtype=manifest["dtype"], mode="r")


def available_tokens(folder: Path) -> int:
    """How many tokens the file holds, EOS included."""
    return int(read_manifest(folder)["tokens"])


def check_budget(part: Part, available: int) -> None:
    """ValueError if the part asks for more tokens than there are, unless it may repeat them."""
    if part.tokens > available and not part.oversample:
        raise ValueError(
            f"the mixture asks for {part.tokens:,} tokens of corpus {part.corpus.name}, which has {available:,}: "
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
