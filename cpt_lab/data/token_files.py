"""Corpora of ready-made token files, taken as they are: looked through once, never copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import read_manifest
from cpt_lab.data.files import files_digest
from cpt_lab.data.tokens import file_digest, load_encoder
from cpt_lab.weights import file_digest as remembered_digest

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.specs import TokenFilesCorpus, Tokens
    from cpt_lab.store import Workspace

NUMPY_HEADER = b"\x93NUMPY"
BLOCK = 2**24  # tokens looked through at once


def build_corpus(spec: TokenFilesCorpus, work: Workspace) -> None:
    """Write manifest.json: path, tokens and digest of each file.

    ValueError for files that changed since their digest was taken, that are empty, have a numpy header, or are cut off inside a token.
    """
    found = files_digest(spec.files)
    if found != spec.files_digest:
        raise ValueError(f"corpus {spec.name}: its files have digest {found}, not files_digest {spec.files_digest}: give the new one")
    files = [_checked(Path(file).expanduser().absolute(), spec.dtype) for file in spec.files]
    facts = {"dtype": spec.dtype, "tokens": sum(file["tokens"] for file in files), "files": files, "licence": spec.licence}
    (work.product / "manifest.json").write_text(json.dumps({**facts, "files_digest": found}, indent=1))


def adopt(spec: Tokens, corpus: Path, tokenizer: Path, work: Workspace) -> None:
    """Write the manifest of a token product whose files are the corpus's own: `tokens` of whole documents, `unended` after the last.

    ValueError for a vocabulary that the files' type cannot hold, for ids that the tokenizer does not have, or files without its EOS.
    """
    import numpy as np

    known, encoder = read_manifest(corpus), load_encoder(spec, tokenizer)
    if spec.split != "train":
        raise ValueError(f"corpus {spec.corpus.name} is made of token files, which have no {spec.split} split: ask for train")
    if spec.clean_of is not None:
        raise ValueError(f"corpus {spec.corpus.name} is made of token files: without texts nothing can be left out; remove clean_of")
    if len(encoder) > np.iinfo(known["dtype"]).max + 1:
        raise ValueError(
            f"tokenizer {spec.tokenizer.label()} has {len(encoder):,} tokens, more than {known['dtype']} of corpus {spec.corpus.name} can "
            "tell apart: it was made with another tokenizer, or give dtype: uint32"
        )
    counted = [_documents(np.memmap(file["path"], dtype=known["dtype"], mode="r"), file["path"], encoder) for file in known["files"]]
    unended = counted[-1][1]  # what a file before the last one does not end, the next one does
    facts = {"documents": sum(ended for ended, _ in counted), "tokens": known["tokens"] - unended, "unended": unended}
    facts |= {"dropped": 0, "vocab_size": len(encoder), "eos": int(encoder.eos_token_id)}
    digests = {"sha256": known["files_digest"], "tokenizer_sha256": file_digest(tokenizer / "tokenizer.json")}
    (work.product / "manifest.json").write_text(json.dumps({**known, **facts, **digests, "corpus": known}, indent=1))


def _checked(path: Path, dtype: str) -> dict[str, Any]:
    size, width = path.stat().st_size, int(dtype.removeprefix("uint")) // 8
    if not size:
        raise ValueError(f"token file {path} is empty: remove it from the corpus's files, or get it again")
    with path.open("rb") as file:
        if file.read(len(NUMPY_HEADER)) == NUMPY_HEADER:
            raise ValueError(f"token file {path} has numpy's header, and flat tokens are needed: write them with array.tofile(path)")
    if size % width:
        raise ValueError(f"token file {path} has {size:,} bytes, no multiple of the {width} of {dtype}: it was cut off, get it again")
    return {"path": str(path), "tokens": size // width, "sha256": remembered_digest(path)}


def _documents(tokens: np.ndarray, path: str, encoder: Any) -> tuple[int, int]:
    """How many documents the tokenizer's EOS ends, and how many tokens come after the last one.

    ValueError if there is none, or an id that the tokenizer does not have.
    """
    import numpy as np

    ended, stop = 0, 0
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        if int(block.max()) >= len(encoder):
            raise ValueError(
                f"token file {path} has the id {int(block.max())}, and the tokenizer {len(encoder):,} tokens: it was made with another "
                "tokenizer, or its dtype is another one"
            )
        stops = np.flatnonzero(block == encoder.eos_token_id)
        if len(stops):
            ended, stop = ended + len(stops), start + int(stops[-1]) + 1
    if not ended:
        raise ValueError(f"token file {path} has no end of text ({encoder.eos_token_id}): it was made with another tokenizer")
    return ended, len(tokens) - stop
