"""One token file out of the parts of a mixture: exact budgets per source, whole documents shuffled among each other."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import read_manifest
from cpt_lab.data.tokens import check_budget, read_tokens
from cpt_lab.specs import digest
from cpt_lab.store import read_json, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.specs import Mixture

BLOCK = 2**24  # tokens looked through at once: a corpus may have 10^11


@dataclass(frozen=True)
class Mixed:
    """A mixed token file: the facts of its tokens, and how often each source was gone through."""

    path: Path
    dtype: str
    tokens: int
    vocab_size: int
    eos: int
    epochs: dict[str, float]


@dataclass(frozen=True)
class Layout:
    """Where the documents of a mixed file come from, in its order: the source's number, the bounds in its token file."""

    source: np.ndarray  # documents
    bounds: np.ndarray  # documents x 2


def mix(mixture: Mixture, sources: Sequence[Path], path: Path, *, tokenizer: Path) -> Mixed:
    """Write to `path` exactly `part.tokens` tokens of each part, documents in a random order drawn from `mixture.seed`.

    A source is gone through in a new order every epoch; only its last document may be cut. A file that stands there whole is taken as it
    is. ValueError if a budget is larger than its source without `oversample`, or if a token file has changed or belongs to another
    tokenizer.
    """
    known = _known(mixture, path)
    if known is not None:
        return known
    manifests = [read_manifest(source) for source in sources]
    for part, manifest in zip(mixture.parts, manifests, strict=True):
        check_budget(part, manifest["tokens"], unended=manifest.get("unended", 0))
    arrays, eos = [read_tokens(source, tokenizer=tokenizer) for source in sources], manifests[0]["eos"]
    documents = [document_bounds(array, eos) for array in arrays]
    available = [int(bounds[-1, 1]) if len(bounds) else 0 for bounds in documents]
    for part, array, whole in zip(mixture.parts, arrays, available, strict=True):  # a manifest may count what no document holds
        check_budget(part, whole, unended=len(array) - whole)
    found = layout(mixture, documents)
    dtype = _widest(manifests)
    beside = unfinished(path)
    with beside.open("wb") as file:
        for source, (start, stop) in zip(found.source, found.bounds, strict=True):
            file.write(arrays[source][start:stop].astype(dtype, copy=False).tobytes())
    os.replace(beside, path)
    epochs = {part.corpus.name: part.tokens / whole for part, whole in zip(mixture.parts, available, strict=True)}
    mixed = Mixed(path, dtype, mixture.tokens, manifests[0]["vocab_size"], eos, epochs)
    facts = {**asdict(mixed), "path": path.name, "bytes": path.stat().st_size, "mixture": digest(mixture)}
    write_atomically(path.with_suffix(".json"), json.dumps(facts))
    return mixed


def unfinished(path: Path) -> Path:
    """Where `mix` writes what will be the file at `path`."""
    return path.with_suffix(".part")


def missing_bytes(mixture: Mixture, sources: Sequence[Path], path: Path) -> int:
    """How many bytes `mix` has yet to write there: all of the file, or none."""
    if _known(mixture, path) is not None:
        return 0
    return mixture.tokens * (int(_widest([read_manifest(source) for source in sources]).removeprefix("uint")) // 8)


def layout(mixture: Mixture, documents: Sequence[np.ndarray]) -> Layout:
    """The documents of the mixed file, in its order; given are the bounds of those of each token file."""
    import numpy as np

    generator = np.random.default_rng(mixture.seed)
    pieces = [documents_up_to(part.tokens, bounds, generator) for part, bounds in zip(mixture.parts, documents, strict=True)]
    source = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    order = generator.permutation(len(source))
    return Layout(source[order], np.concatenate(pieces)[order])


def document_bounds(tokens: np.ndarray, eos: int) -> np.ndarray:
    """Where documents start and stop, EOS included; documents x 2. What comes after the last EOS is none."""
    import numpy as np

    parts = (np.flatnonzero(tokens[start : start + BLOCK] == eos) + start + 1 for start in range(0, len(tokens), BLOCK))
    stops = np.concatenate([np.empty(0, dtype=np.int64), *parts])
    return np.stack([np.concatenate([[0], stops])[:-1], stops], axis=1)


def documents_up_to(budget: int, bounds: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Bounds of documents, epoch after epoch in new orders, until their lengths sum up to the budget; the last one is cut to fit.

    ValueError if there is no document.
    """
    import numpy as np

    if not len(bounds):
        raise ValueError(
            "a token file of the mixture holds no whole document: see that documents end with the tokenizer's end-of-text token"
        )
    taken, left = [bounds[:0]], budget
    while left:
        epoch = bounds[generator.permutation(len(bounds))]
        reached = np.cumsum(epoch[:, 1] - epoch[:, 0])
        count = int(np.searchsorted(reached, left)) + 1  # documents that reach what is left
        epoch = epoch[:count]
        over = max(int(reached[min(count, len(reached)) - 1]) - left, 0)
        epoch[-1, 1] -= over
        taken.append(epoch)
        left -= int((epoch[:, 1] - epoch[:, 0]).sum())
    return np.concatenate(taken)


def documents_of(
    mixture: Mixture, sources: Sequence[Path], sequences: Sequence[int], *, tokenizer: Path, length: int
) -> dict[str, list[int]]:
    """Corpus name -> numbers of its documents, from 0, that stand in these sequences of `length` tokens of the mixed file."""
    import numpy as np

    eos = read_manifest(sources[0])["eos"]
    documents = [document_bounds(read_tokens(source, tokenizer=tokenizer), eos) for source in sources]
    found = layout(mixture, documents)
    ends = np.cumsum(found.bounds[:, 1] - found.bounds[:, 0])
    first = np.searchsorted(ends, np.asarray(sequences) * length, side="right")
    last = np.searchsorted(ends, (np.asarray(sequences) + 1) * length - 1, side="right")
    pieces = np.unique(np.concatenate([np.arange(one, other + 1) for one, other in zip(first, last, strict=True)]))
    named = {}
    for number, part in enumerate(mixture.parts):
        starts = documents[number][:, 0]
        mine = pieces[found.source[pieces] == number]
        if len(mine):
            named[part.corpus.name] = np.unique(np.searchsorted(starts, found.bounds[mine, 0])).tolist()
    return named


def _widest(manifests: Sequence[dict[str, Any]]) -> str:
    """The type that holds the tokens of all; ready-made files may differ."""
    return max((str(manifest["dtype"]) for manifest in manifests), key=lambda name: int(name.removeprefix("uint")))


def _known(mixture: Mixture, path: Path) -> Mixed | None:
    """What an earlier attempt wrote whole."""
    facts = read_json(path.with_suffix(".json"))
    size, of = facts.pop("bytes", None), facts.pop("mixture", None)
    if not path.exists() or size != path.stat().st_size or of != digest(mixture):
        return None
    return Mixed(**{**facts, "path": path})
