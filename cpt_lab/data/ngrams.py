"""Words in a row that a text shares with test items: found by rolling hashes of whole arrays, then compared word by word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SHORTEST = 8  # words: fewer in a row stand in many texts by chance
WORD = re.compile(r"\w+")
FACTOR = 0x9E3779B97F4A7C15  # odd, so that no power of it is zero modulo 2^64

Item = tuple[str, int]  # task and number
Grams = Mapping[tuple[str, ...], frozenset[Item]]


@dataclass(frozen=True)
class Index:
    """The runs of words of all items: the words' numbers, and for each length the hashes, sorted, and what they stand for."""

    words: dict[str, int]
    grams: dict[int, Grams]
    hashes: dict[int, np.ndarray]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; what is between them does not count."""
    return WORD.findall(text.lower())


def runs_of(fields: Iterable[str], length: int) -> Iterator[tuple[str, ...]]:
    """All runs of so many words in the fields of an item; a field of SHORTEST words or more that has fewer is one run itself."""
    for field in fields:
        words = words_of(field)
        if SHORTEST <= len(words) < length:
            yield tuple(words)
        yield from (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def index(items: Mapping[str, Sequence[Sequence[str]]], length: int) -> Index:
    """The index of the items of each task, every item a sequence of texts."""
    import numpy as np

    found: dict[tuple[str, ...], set[Item]] = {}
    for task, members in items.items():
        for number, fields in enumerate(members):
            for run in runs_of(fields, length):
                found.setdefault(run, set()).add((task, number))
    words = {word: place for place, word in enumerate(sorted({word for run in found for word in run}), start=1)}
    grams: dict[int, dict[tuple[str, ...], frozenset[Item]]] = {}
    for run, owners in found.items():
        grams.setdefault(len(run), {})[run] = frozenset(owners)
    hashes = {
        size: np.unique(np.concatenate([rolling(np.array([words[word] for word in run], dtype=np.uint64), size) for run in runs]))
        for size, runs in grams.items()
    }
    return Index(words, dict(grams), hashes)


def overlaps(words: Sequence[str], known: Index) -> dict[Item, str]:
    """The items that a text of these words shares a run with, each with the first such run."""
    import numpy as np

    numbers = np.fromiter((known.words.get(word, 0) for word in words), dtype=np.uint64, count=len(words))
    found: dict[Item, str] = {}
    for size, hashes in known.hashes.items():
        if len(words) < size:
            continue
        places = np.searchsorted(hashes, rolled := rolling(numbers, size))
        for start in np.flatnonzero(hashes[np.minimum(places, len(hashes) - 1)] == rolled).tolist():
            run = tuple(words[start : start + size])
            for item in known.grams[size].get(run, ()):
                found.setdefault(item, " ".join(run))
    return found


def rolling(numbers: np.ndarray, size: int) -> np.ndarray:
    """Hashes of all runs of `size` numbers: sum_i x_i FACTOR^i modulo 2^64."""
    import numpy as np

    total = np.zeros(len(numbers) - size + 1, dtype=np.uint64)
    factor = 1
    for offset in range(size):
        total += numbers[offset : offset + len(total)] * np.uint64(factor)
        factor = factor * FACTOR % 2**64
    return total
