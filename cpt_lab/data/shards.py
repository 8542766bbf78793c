"""Shards: pieces of a corpus that are read by themselves, so that work on it can be shared out and taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from dataclasses import field as with_default
from pathlib import Path
from typing import Any

from cpt_lab.data import formats, hub
from cpt_lab.data.rules import passes, value_of
from cpt_lab.specs import Rule

Group = tuple["Shard", ...]


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of a source, in the source's own measure: bytes of plain jsonl, row groups of parquet, files of a data set."""

    form: str  # a key of READERS
    source: str  # a path, or a data set's id
    start: int = 0
    stop: int | None = None  # None: to the end
    field: str = "text"
    rules: tuple[Rule, ...] = ()
    size: int = formats.PIECE  # about how many bytes it takes in its source
    settings: dict[str, Any] = with_default(default_factory=dict)  # of a data set on the hub
    kept: str | None = None  # a file with one boolean per document: which of them belong to the split; None: all
    digest: str | None = None  # SHA-256 over the digests of its documents when `kept` was written

    def beside(self, folder: Path) -> Shard:
        """The same with its flags looked for in this folder."""
        return self if self.kept is None else replace(self, kept=str(folder / self.kept))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "rules": [rule.model_dump() for rule in self.rules]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Shard:
        return cls(**{**data, "rules": tuple(Rule(**rule) for rule in data["rules"])})


READERS: dict[str, Callable[[str, int, int | None, dict[str, Any]], Iterator[formats.Row]]] = {
    "jsonl": formats.plain_lines,
    "jsonl.gz": formats.packed_lines,
    "jsonl.zst": formats.packed_lines,
    "parquet": formats.parquet_rows,
    "hub": hub.rows,
}


def shards_of_file(path: str, *, field: str = "text", rules: Sequence[Rule] = ()) -> list[Shard]:
    """A file in pieces of about formats.PIECE bytes, or whole if it is packed; ValueError if its kind is not known or it cannot be read."""
    form = formats.form_of(path)
    columns = {"columns": sorted({name.split(".")[0] for name in (field, *(rule.field for rule in rules))})} if form == "parquet" else {}
    parts = formats.pieces(path, form)
    size = Path(path).expanduser().stat().st_size // max(len(parts), 1)
    whole = Shard(form, path, field=field, rules=tuple(rules), settings=columns, size=size)
    return [replace(whole, start=start, stop=stop) for start, stop in parts]


def grouped(shards: Sequence[Shard]) -> list[Group]:
    """Consecutive shards in groups of about formats.PIECE bytes, the same wherever and whenever: the tasks of a pipeline."""
    groups: list[list[Shard]] = []
    room = 0
    for shard in shards:
        if not groups or shard.size > room:
            groups.append([])
            room = formats.PIECE
        groups[-1].append(shard)
        room -= shard.size
    return [tuple(group) for group in groups]


def texts(shard: Shard) -> Iterator[str]:
    """The documents of a shard that pass its rules and are kept; ValueError naming the place of a row without a text.

    An empty text is no document.
    """
    found = all_texts(shard)
    return found if shard.kept is None else _kept(shard, found)


def all_texts(shard: Shard) -> Iterator[str]:
    """The documents of a shard before any of them is held out or left out as a repetition."""
    for row in READERS[shard.form](shard.source, shard.start, shard.stop, shard.settings):
        try:
            wanted = passes(row.values, shard.rules)
            text = value_of(row.values, shard.field) if wanted else ""
        except ValueError as error:
            raise ValueError(f"{row.place}: {error}") from None
        if not isinstance(text, str):
            raise ValueError(f"{row.place} has no text in field {shard.field!r} but {text!r}: choose another field")
        if text:
            yield text


def text_digest(text: str) -> bytes:
    """16 bytes that tell texts apart."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _kept(shard: Shard, found: Iterator[str]) -> Iterator[str]:
    """Those documents whose flag says so; ValueError, at the end, if the source holds others than when the flags were written."""
    import numpy as np

    assert shard.kept is not None
    flags = np.load(shard.kept).tolist()
    total = hashlib.sha256()
    for index, text in enumerate(found):
        total.update(text_digest(text))
        if index < len(flags) and flags[index]:
            yield text
    if total.hexdigest() != shard.digest:
        raise ValueError(f"{shard.source} has changed since its corpus was made: put the old file back, or launch again with the new one")
