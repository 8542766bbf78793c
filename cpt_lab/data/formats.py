"""Files of documents: jsonl, plain or packed by gzip or zstd, and parquet; in pieces, row by row, every failure with its place."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cpt_lab.failures import first_line

FORMS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".json.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
    ".json.zst": "jsonl.zst",
    ".parquet": "parquet",
}
PIECE = 32 * 2**20  # bytes of plain text that one task reads: some ten seconds of tokenising
BLOCK = 2**18  # bytes of a packed file that are unpacked at once
ROWS = 1024  # of a parquet file that are held at once
GZIP = 31  # zlib's code for deflate with gzip's header


class Row(NamedTuple):
    """One row and where it stands, in words."""

    place: str
    values: dict[str, Any]


def form_of(path: str) -> str:
    """`jsonl`, `jsonl.gz`, `jsonl.zst` or `parquet`, by the end of the file's name; ValueError for another end."""
    for end in sorted(FORMS, key=len, reverse=True):
        if path.lower().endswith(end):
            return FORMS[end]
    raise ValueError(f"corpus file {path} ends like none of {', '.join(FORMS)}: give files of these kinds")


def pieces(path: str, form: str) -> list[tuple[int, int | None]]:
    """(start, stop) of pieces that can be read by themselves; a packed file is one. ValueError if the file cannot be read."""
    try:
        size = Path(path).expanduser().stat().st_size
    except OSError as error:
        raise ValueError(f"corpus file {path} cannot be read ({error.strerror}): give the path of a file of documents") from None
    if form == "jsonl":
        return [(start, min(start + PIECE, size)) for start in range(0, max(size, 1), PIECE)]
    if form == "parquet":
        groups = _parquet(path).num_row_groups
        return [(group, group + 1) for group in range(groups)]
    return [(0, None)]


def plain_lines(path: str, start: int, stop: int | None, _: dict[str, Any]) -> Iterator[Row]:
    """The lines that start in [start, stop), as JSON objects; blank ones are left out."""
    try:
        with Path(path).expanduser().open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()  # the rest of a line that starts in the piece before
            offset, number = file.tell(), 0
            while (stop is None or offset < stop) and (line := file.readline()):
                number += 1
                place = f"the line at byte {offset:,} of {path}" if start else f"line {number} of {path}"
                if line.strip():
                    yield Row(place, _object(line, place))
                offset += len(line)
    except OSError as error:
        raise ValueError(f"corpus file {path} cannot be read ({error.strerror}): put it back where it was") from None


def packed_lines(path: str, *_: Any) -> Iterator[Row]:
    """The lines of a file packed by gzip or zstd, as JSON objects; ValueError with the byte where it cannot be unpacked."""
    pending, number = b"", 0
    for block in _with_end(_unpacked(path)):
        *lines, pending = (pending + block).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                place = f"line {number} of {path}"
                yield Row(place, _object(line, place))


def parquet_rows(path: str, start: int, stop: int | None, settings: dict[str, Any]) -> Iterator[Row]:
    """The rows of row groups `start` to `stop`, of the columns in `settings` or all; ValueError naming the group that cannot be read."""
    import pyarrow

    file = _parquet(path)
    asked = settings.get("columns")
    columns = asked if asked is not None and set(asked) <= set(file.schema_arrow.names) else None
    for group in range(start, file.num_row_groups if stop is None else stop):
        try:
            for first, batch in enumerate(file.iter_batches(batch_size=ROWS, row_groups=[group], columns=columns)):
                for index, values in enumerate(batch.to_pylist()):
                    yield Row(f"row {first * ROWS + index + 1} of row group {group} of {path}", values)
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(
                f"row group {group} of {path} cannot be read ({first_line(error)}): the file is damaged, get it again"
            ) from None


# ------------------------------------------------------------------------------------------------------------- helpers


def _object(line: bytes, place: str) -> dict[str, Any]:
    import orjson

    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError:
        values = _leniently(line)
    if not isinstance(values, dict):
        raise ValueError(f"{place} is no JSON object: one object a line is needed")
    return values


def _leniently(line: bytes) -> Any:
    """What Python itself reads of a line, NaN included; None if it is no JSON."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _with_end(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks and a last end of line."""
    yield from blocks
    yield b"\n"


def _unpacked(path: str) -> Iterator[bytes]:
    """The contents of a packed file in blocks."""
    new = (lambda: zlib.decompressobj(GZIP)) if form_of(path) == "jsonl.gz" else _zstandard
    try:
        with Path(path).expanduser().open("rb") as file:
            yield from _streams(path, file, new)
    except OSError as error:
        raise ValueError(f"corpus file {path} cannot be read ({error.strerror}): put it back where it was") from None


def _streams(path: str, file: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    """All streams of a packed file, one after the other, for both packers' files may be appended to. ValueError if the last has no end."""
    import zstandard

    stream, ended, unpacked = new(), False, 0
    while packed := file.read(BLOCK):
        while packed:
            if ended:
                packed = packed.lstrip(b"\0")  # what tapes and some tools pad with
                if not packed:
                    break
                stream = new()
            before = file.tell() - len(packed)
            try:
                block = stream.decompress(packed)
            except (zlib.error, zstandard.ZstdError) as error:
                raise ValueError(
                    f"{path} cannot be unpacked after byte {before:,} ({unpacked:,} of its contents; {first_line(error)}): "
                    "the file is damaged, get it again"
                ) from None
            unpacked += len(block)
            yield block
            ended = stream.eof
            packed = stream.unused_data if ended else b""
    if not ended:
        raise ValueError(f"{path} ends at byte {file.tell():,} in the middle of its packed contents ({unpacked:,}): get it again, whole")


def _zstandard() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _parquet(path: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(Path(path).expanduser())
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet ({first_line(error)}): it is damaged, get it again") from None
