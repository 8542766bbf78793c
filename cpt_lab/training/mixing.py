"""One token file out of the parts of a mixture: exact budgets per source, whole documents shuffled among each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.data.documents import read_manifest
from cpt_lab.data.tokens import check_budget, read_tokens

if TYPE_CHECKING:
    import numpy as np

    from cpt_lab.specs import Mixture


@dataclass(frozen=True)
class Mixed:
    """A mixed token file: the facts of its tokens, and how often each source was gone through."""

    path: Path
    dtype: str
    tokens: int
    vocab_size: int
    eos: int
    epochs: dict[str, float]


def mix(mixture: Mixture, sources: Sequence[Path], path: Path, *, tokenizer: Path) -> Mixed:
    """Write to `path` exactly `part.tokens` tokens of each part, documents in a random order drawn from `mixture.seed`.

    A source is gone through in a new order every epoch; only its last document may be cut. ValueError if a budget is larger than its
    source without `oversample`, or if a token file has changed or belongs to another tokenizer.
    """
    import numpy as np

    generator = np.random.default_rng(mixture.seed)
    manifests = [read_manifest(source) for source in sources]
    for part, manifest in zip(mixture.parts, manifests, strict=True):
        check_budget(part, manifest["tokens"])
    arrays = [read_tokens(source, tokenizer=tokenizer) for source in sources]
    eos = manifests[0]["eos"]
    pieces = [
        (index, start, stop)
        for index, (part, array) in enumerate(zip(mixture.parts, arrays, strict=True))
        for start, stop in documents_up_to(part.tokens, document_bounds(array, eos), generator)
    ]
    with path.open("wb") as file:
        for index in generator.permutation(len(pieces)):
            source, start, stop = pieces[index]
            file.write(arrays[source][start:stop].tobytes())
    return Mixed(path, manifests[0]["dtype"], mixture.tokens, manifests[0]["vocab_size"], eos, epochs_of(mixture, manifests))


def epochs_of(mixture: Mixture, manifests: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Corpus name -> tokens asked for / tokens there are."""
    return {part.corpus.name: part.tokens / manifest["tokens"] for part, manifest in zip(mixture.parts, manifests, strict=True)}


def document_bounds(tokens: np.ndarray, eos: int) -> np.ndarray:
    """Where documents start and stop, EOS included; documents x 2."""
    import numpy as np

    stops = np.flatnonzero(tokens == eos) + 1
    return np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1)


def documents_up_to(budget: int, bounds: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Bounds of documents, epoch after epoch in new orders, until their lengths sum up to the budget; the last one is cut to fit."""
    left = budget
    while left:
        for start, stop in bounds[generator.permutation(len(bounds))]:
            taken = min(int(stop - start), left)
            yield int(start), int(start) + taken
            left -= taken
            if not left:
                return
