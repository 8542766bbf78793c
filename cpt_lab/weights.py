"""Weights of checkpoints in Hugging Face format, safetensors only: opened lazily, checked, identified, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.architecture import parameter_names
from cpt_lab.shards import Shard, Stored, num_bytes, open_shard, read, write

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]

Shapes = dict[str, tuple[int, ...]]

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
RECORDS = (
    "training.json",
    "metrics.jsonl",
    "commit.json",
    "patch.json",
    "spectra.parquet",
)  # of how a folder came about: no copy came about so
BLOCK = 1 << 22  # bytes read at once for a digest


class StoredWeights(Mapping[str, "torch.Tensor"]):
    """The parameters of a folder by transformers' names; each is mapped into memory when it is asked for, nothing is read before.

    The one asked for last stays mapped: those who take a parameter slice by slice find it again.
    """

    def __init__(self, parameters: Mapping[str, Stored]) -> None:
        self._parameters = dict(parameters)
        self._last: tuple[str, torch.Tensor] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        last = self._last  # another thread may ask for another one in the meantime
        if last is None or last[0] != name:
            last = self._last = (name, read(self._parameters[name]))
        return last[1]

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, without reading it."""
        return self._parameters[name].shape


def open_weights(folder: Path) -> StoredWeights:
    """The parameters of a checkpoint folder, single file or sharded; ValueError if it has no whole set of safetensors."""
    return StoredWeights(_layout(Path(folder)).parameters)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from a folder, by name; ValueError if there are none or one is missing."""
    if (folder / INDEX).exists():
        shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            raise ValueError(f"{folder} lacks the shard {missing[0]} that its index names: copy or download the folder again")
        return [folder / name for name in shards]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]  # some releases have a copy of all weights under another name beside it
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return found
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: give the folder of a model in Hugging Face format")
    pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
    if pickles:
        raise ValueError(
            f"{folder} holds pickled weights only ({pickles[0]}), which can run any code when they are opened: load the model where you "
            "trust it and save it again with save_pretrained, which writes safetensors"
        )
    raise ValueError(f"{folder} holds no safetensors: give the folder of a model in Hugging Face format (config.json and *.safetensors)")


def weights_digest(folder: Path, cache: Path | None = None) -> str:
    """SHA-256 over the contents of the folder's safetensors files; remembered in `cache` by path, size and time of change."""
    return files_digest(weight_files(Path(folder)), cache)


def files_digest(files: Sequence[Path], cache: Path | None = None) -> str:
    """SHA-256 over the names and contents of files, remembered as `weights_digest` does."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpt_lab"
    digests = [f"{path.name} {file_digest(path, cache)}\n" for path in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_same_shapes(left: Weights, right: Weights, *, names: tuple[str, str] = ("tuned", "base")) -> None:
    """ValueError naming the first parameter that only one of the two has, or that differs in shape."""
    _check_same({name: _shape(left, name) for name in left}, {name: _shape(right, name) for name in right}, names)


def check_same_headers(left: Path, right: Path, *, names: tuple[str, str] = ("tuned", "base")) -> None:
    """`check_same_shapes` of two folders by the headers of their files alone: no weights are read and torch is not imported."""
    _check_same(_shapes(left), _shapes(right), names)


def check_same_dtypes(left: Path, right: Path, *, names: tuple[str, str] = ("tuned", "base")) -> None:
    """ValueError naming the first parameter that two folders store in different dtypes; those that one lacks are no matter."""
    first, second = (_layout(folder).parameters for folder in (left, right))
    for parameter in sorted(first.keys() & second.keys()):
        one, other = first[parameter].dtype, second[parameter].dtype
        if one != other:
            raise ValueError(
                f"{parameter} is {one} in {names[0]} and {other} in {names[1]}: convert one of the checkpoints, so that it is clear where "
                "values are rounded"
            )


def check_finite(weights: Weights, name: str) -> None:
    """ValueError naming the checkpoint, the first parameter that is not finite and how many of its values are not."""
    import torch

    for parameter, tensor in weights.items():
        if not _is_finite(tensor):
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            raise ValueError(
                f"{name} has {count} values in {parameter} that are not finite: its training or its copy went wrong, use another one"
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are: one pass for the ends, which are nan where any value is, takes a tenth of what a mask of all takes."""
    import torch

    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def save_checkpoint(weights: Weights, like: Path, out: Path, *, config: Mapping[str, Any] | None = None) -> None:
    """Write weights as a checkpoint folder `out` with the shards, names, dtypes, configuration and tokenizer of `like`, one by one.

    `config` are entries of config.json that are to change; only with them may parameters of `like` be missing (fewer layers). `out` must
    be absent or empty, and appears whole or not at all. ValueError if a parameter is missing, unknown or differs from `like` in shape or
    dtype, or if the disk has too little room.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a new folder")
    layout = _layout(like)
    _check_same_names(weights, layout.names.values(), fewer=config is not None)
    if config is not None:
        layout = layout.of(weights)
    _check_room(layout, like, out)
    beside = out.with_name(f".{out.name.lstrip('.')}.{uuid.uuid4().hex[:8]}")  # the store clears .product-* of a dead build
    beside.mkdir(parents=True)
    try:
        _copy_companions(like, beside)
        if config is not None:
            _rewrite_companions(beside, layout, config)
        for file, shard in layout.shards.items():
            write(beside / file, shard, lambda stored: weights[layout.names[stored.name]] if stored.name in layout.names else read(stored))
        os.replace(beside, out)  # an empty folder gives way
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


@dataclass(frozen=True)
class _Layout:
    """What lies in which file of a folder, and which parameter each tensor is; the others are buffers that old files hold."""

    shards: dict[str, Shard]
    names: dict[str, str]  # in the files -> in transformers; a parameter that lies there twice comes last under its own name

    @property
    def parameters(self) -> dict[str, Stored]:
        tensors = {stored.name: stored for shard in self.shards.values() for stored in shard.tensors}
        return {name: tensors[file] for file, name in self.names.items()}

    def of(self, weights: Weights) -> _Layout:
        """What remains of it for weights that lack some of its parameters; buffers, which nobody reads, do not."""
        present = frozenset(weights)  # `in` of a mapping that makes its values would make them
        names = {file: name for file, name in self.names.items() if name in present}
        kept = {
            file: replace(shard, tensors=tuple(stored for stored in shard.tensors if stored.name in names))
            for file, shard in self.shards.items()
        }
        return _Layout({file: shard for file, shard in kept.items() if shard.tensors}, names)


def _shapes(folder: Path) -> Shapes:
    return {name: stored.shape for name, stored in _layout(folder).parameters.items()}


def _layout(folder: Path) -> _Layout:
    shards = {path.name: open_shard(path) for path in weight_files(folder)}
    config = folder / CONFIG
    settings = json.loads(config.read_text()) if config.exists() else {}
    return _Layout(shards, parameter_names([stored.name for shard in shards.values() for stored in shard.tensors], settings))


def _check_same_names(weights: Weights, known: Iterable[str], *, fewer: bool) -> None:
    names = set(known)
    different = sorted(set(weights) - names if fewer else set(weights) ^ names)
    if different:
        where = "is missing" if different[0] in names else "is unknown to the checkpoint they are like"
        raise ValueError(f"{different[0]} {where}: new weights must have the same parameters, no more and no less")


def _check_room(layout: _Layout, like: Path, out: Path) -> None:
    """ValueError if the disk of `out` has less room than the files take."""
    needed = sum(num_bytes(shard.tensors) for shard in layout.shards.values()) + sum(path.stat().st_size for path in _companions(like))
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(
            f"a checkpoint like {like} needs {needed:,} bytes and {existing} has {free:,} free: free some or give another disk"
        )


def _companions(folder: Path) -> list[Path]:
    """Configuration, tokenizer, generation settings, the shard index: every plain file but weights and records."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".") and path.name not in RECORDS]
    return [path for path in files if path.suffix != ".safetensors" and not any(path.match(pattern) for pattern in PICKLES)]


def _copy_companions(like: Path, out: Path) -> None:
    for path in _companions(like):
        shutil.copyfile(path, out / path.name)  # follows the links that hub snapshots are made of


def _rewrite_companions(folder: Path, layout: _Layout, config: Mapping[str, Any]) -> None:
    """The configuration with its changes, and the index of the shards that are left."""
    old = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**old, **config}, indent=2, sort_keys=True) + "\n")
    if (folder / INDEX).exists():
        files = {stored.name: file for file, shard in layout.shards.items() for stored in shard.tensors}
        total = sum(num_bytes(shard.tensors) for shard in layout.shards.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _check_same(left: Shapes, right: Shapes, names: tuple[str, str]) -> None:
    for parameter in sorted(set(left) | set(right)):
        for shapes, name in zip((left, right), names, strict=True):
            if parameter not in shapes:
                raise ValueError(f"{parameter} is missing in {name}: {names[0]} and {names[1]} must be models of one architecture")
        first, second = left[parameter], right[parameter]
        if first != second:
            raise ValueError(
                f"{parameter} is {first} in {names[0]} and {second} in {names[1]}: give two models of one architecture and size"
            )


def file_digest(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file's contents; remembered in `cache`, by default the user's, by path, size and time of change."""
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpt_lab"
    path = path.resolve()
    stat = path.stat()
    state = {"path": str(path), "size": stat.st_size, "changed": stat.st_mtime_ns}
    entry = cache / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.json"
    known = _read_entry(entry)
    if {name: known.get(name) for name in state} == state:
        return str(known["sha256"])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    _write_entry(entry, {**state, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _read_entry(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return entry if isinstance(entry, dict) else {}


def _write_entry(path: Path, entry: dict[str, Any]) -> None:
    """Remember a digest if this can be done: a cache that cannot be written costs time only."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(entry))
        os.replace(beside, path)
    except OSError:
        with suppress(OSError):
            beside.unlink()


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    return weights.shape(name) if isinstance(weights, StoredWeights) else tuple(weights[name].shape)
