"""One safetensors file: what it holds without reading it, its tensors mapped into memory one by one, and writing one as a stream.

Each tensor is a mapping of its own, so that the memory of a checkpoint that is streamed is that of the tensors in use: a file that is
mapped once keeps every page it ever touched. Headers are read without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DTYPES = {  # as the format names them -> as torch does
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"},
}
PIECE = 1 << 18  # bytes written at once: with larger ones a kernel may search long for pages of their size, up to ten times the work
METADATA = "__metadata__"
LENGTH_BYTES = 8  # of the header's length at the start of a file; headers are padded to a multiple of it


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its name there, dtype as the format names it, shape, and the range of bytes that it takes."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Shard:
    """The tensors of a file in the order in which they lie there, and the file's own remarks."""

    tensors: tuple[Stored, ...]
    metadata: Mapping[str, str]


def open_shard(path: Path) -> Shard:
    """What a file holds; ValueError if it is not whole or holds a dtype that is not computed with here."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass  # it checks the header: ranges of bytes that are disjoint, of the sizes of their shapes, and as long as the file
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): copy or download it again") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    metadata = header.pop(METADATA, {})
    tensors = (_stored(path, name, entry, LENGTH_BYTES + length) for name, entry in header.items())
    return Shard(tuple(sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))), metadata)


def read(stored: Stored) -> torch.Tensor:
    """The tensor, mapped: pages are read when they are touched and given back with the tensor. Writing to it does not reach the file."""
    import torch

    mapped = torch.from_file(str(stored.path), shared=False, size=stored.path.stat().st_size, dtype=torch.uint8)
    content = mapped[stored.start : stored.stop]
    dtype: torch.dtype = getattr(torch, DTYPES[stored.dtype])
    aligned = content if stored.start % dtype.itemsize == 0 else content.clone()  # older writers did not align
    return aligned.view(dtype).view(stored.shape)


def write(path: Path, shard: Shard, value: Callable[[Stored], torch.Tensor]) -> None:
    """Write tensors like those of `shard`, one after another; ValueError if a value differs in shape or dtype."""
    with path.open("xb", buffering=0) as file:
        _write(file, memoryview(_header(shard)))
        for stored in shard.tensors:
            _write(file, _content(value(stored), stored))  # in one expression: a tensor goes before the next is made, which takes its place


def num_bytes(tensors: Iterable[Stored]) -> int:
    """The bytes that tensors take in their files."""
    return sum(tensor.stop - tensor.start for tensor in tensors)


def _stored(path: Path, name: str, entry: Mapping[str, Any], base: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise ValueError(
            f"{name} in {path} is stored as {entry['dtype']}, which is not computed with here: use a checkpoint in {', '.join(DTYPES)}"
        )
    start, stop = entry["data_offsets"]
    return Stored(path, name, entry["dtype"], tuple(entry["shape"]), base + start, base + stop)


def _header(shard: Shard) -> bytes:
    """As the library writes it, so that a copy has the bytes of its source."""
    entries: dict[str, Any] = {METADATA: dict(shard.metadata)} if shard.metadata else {}
    start = 0
    for tensor in shard.tensors:
        stop = start + num_bytes([tensor])
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _content(tensor: torch.Tensor, stored: Stored) -> memoryview:
    import torch

    _check_like(tensor, stored)
    content: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return content


def _write(file: FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content[:PIECE]) :]


def _check_like(tensor: torch.Tensor, stored: Stored) -> None:
    dtype, expected = str(tensor.dtype), f"torch.{DTYPES[stored.dtype]}"
    if (tuple(tensor.shape), dtype) != (stored.shape, expected):
        raise ValueError(
            f"{stored.name} is {dtype} {tuple(tensor.shape)}, but {expected} {stored.shape} in the checkpoint it is written like: "
            "convert it first"
        )
