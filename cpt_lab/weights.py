"""Weights of checkpoints in Hugging Face format, safetensors only: opened lazily, checked, identified, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    Weights = Mapping[str, torch.Tensor]

Shapes = dict[str, tuple[int, ...]]

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
BLOCK = 1 << 22  # bytes read at once for a digest
TIED = {"lm_head.weight": "model.embed_tokens.weight"}  # alias -> owner, where config.json ties the embeddings


class StoredWeights(Mapping[str, "torch.Tensor"]):
    """The parameters of a folder; each is mapped into memory when it is asked for, nothing is read before.

    With tied embeddings the output matrix is the input embedding under another name, so only the latter is a parameter.
    """

    def __init__(self, files: Mapping[str, Path], hidden: frozenset[str] = frozenset()) -> None:
        self._files = {name: path for name, path in files.items() if name not in hidden}
        self._opened: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise KeyError(name)
        tensor: torch.Tensor = self._handle(name).get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, without reading it."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def _handle(self, name: str) -> Any:
        path = self._files[name]
        if path not in self._opened:
            self._opened[path] = _open(path)
        return self._opened[path]


def open_weights(folder: Path) -> StoredWeights:
    """The parameters of a checkpoint folder, single file or sharded; ValueError if it has no whole set of safetensors."""
    folder = Path(folder)
    files: dict[str, Path] = {}
    for path in weight_files(folder):
        files |= dict.fromkeys(_open(path).keys(), path)
    return StoredWeights(files, hidden=_aliases(folder, files))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, by name; ValueError if there are none or one is missing."""
    if (folder / INDEX).exists():
        shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        missing = [name for name in shards if not (folder / name).exists()]
        if missing:
            raise ValueError(f"{folder} lacks the shard {missing[0]} that its index names: copy or download the folder again")
        return [folder / name for name in shards]
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
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cpt_lab"
    digests = [f"{path.name} {_file_digest(path.resolve(), cache)}\n" for path in weight_files(Path(folder))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_same_shapes(left: Weights, right: Weights, *, names: tuple[str, str] = ("tuned", "base")) -> None:
    """ValueError naming the first parameter that only one of the two has, or that differs in shape."""
    _check_same({name: _shape(left, name) for name in left}, {name: _shape(right, name) for name in right}, names)


def check_same_headers(left: Path, right: Path, *, names: tuple[str, str] = ("tuned", "base")) -> None:
    """`check_same_shapes` of two folders by the headers of their files alone: no weights are read and torch is not imported."""
    _check_same(_header(left), _header(right), names)


def check_finite(weights: Weights, name: str) -> None:
    """ValueError naming the checkpoint, the first parameter that is not finite and how many of its values are not."""
    import torch

    for parameter, tensor in weights.items():
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            count = finite.numel() - int(finite.sum())
            raise ValueError(
                f"{name} has {count} values in {parameter} that are not finite: its training or its copy went wrong, use another one"
            )


def save_checkpoint(weights: Weights, like: Path, out: Path) -> None:
    """Write weights as a checkpoint folder `out` with the shards, dtypes, configuration and tokenizer of `like`.

    `out` must be absent or empty. ValueError if a parameter is missing, unknown or differs from `like` in shape or dtype.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty: give a new folder")
    _check_same_names(weights, open_weights(like))
    beside = out.with_name(f".{out.name.lstrip('.')}.{uuid.uuid4().hex[:8]}")  # the store clears .product-* of a dead build
    beside.mkdir(parents=True)
    try:
        _copy_companions(like, beside)
        for path in weight_files(like):
            _save_shard(weights, path, beside / path.name)
        os.replace(beside, out)  # an empty folder gives way
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _check_same_names(weights: Weights, like: Weights) -> None:
    different = sorted(set(weights) ^ set(like))
    if different:
        where = "is missing" if different[0] in like else "is unknown to the checkpoint they are like"
        raise ValueError(f"{different[0]} {where}: new weights must have the same parameters, no more and no less")


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


def _header(folder: Path) -> Shapes:
    shapes: Shapes = {}
    for path in weight_files(folder):
        file = _open(path, framework="numpy")
        shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return {name: shape for name, shape in shapes.items() if name not in _aliases(folder, shapes)}


def _open(path: Path, framework: str = "pt") -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): copy or download it again") from None


def _aliases(folder: Path, names: Mapping[str, Any]) -> frozenset[str]:
    config = folder / "config.json"
    tied = config.exists() and bool(json.loads(config.read_text()).get("tie_word_embeddings"))
    return frozenset(alias for alias, owner in TIED.items() if tied and owner in names)


def _file_digest(path: Path, cache: Path) -> str:
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


def _copy_companions(like: Path, out: Path) -> None:
    """Configuration, tokenizer, generation settings, the shard index: every plain file but weights."""
    for path in sorted(like.iterdir()):
        weights = path.suffix == ".safetensors" or any(path.match(pattern) for pattern in PICKLES)
        if path.is_file() and not weights and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)  # follows the links that hub snapshots are made of


def _save_shard(weights: Weights, like: Path, path: Path) -> None:
    from safetensors.torch import save_file

    stored = _open(like)
    tensors = {}
    for name in stored.keys():  # noqa: SIM118 (no mapping)
        tensor, old = weights[name if name in weights else TIED[name]], stored.get_tensor(name)
        if (tensor.shape, tensor.dtype) != (old.shape, old.dtype):
            new, like_it = (f"{one.dtype} {tuple(one.shape)}" for one in (tensor, old))
            raise ValueError(f"{name} is {new}, but {like_it} in the checkpoint it is written like: convert it first")
        tensors[name] = tensor.detach().cpu().contiguous()
    save_file(tensors, path, metadata=stored.metadata() or {"format": "pt"})
