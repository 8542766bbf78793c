"""What layers were given when other models read the same batches, recognised by the contents of all weights below them.

Whatever has been done to a model, in whatever way, its weights are looked at before anything is taken from here: what was computed by
other weights is not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor


def weights_below(body: Any, layers: Any) -> tuple[str, ...]:
    """For every layer, and last for their end, the digest of all weights and buffers of which its input is made.

    What belongs to no layer (embeddings; the last norm and the output matrix, which are above all) counts as below the first.
    """
    inner = {id(tensor) for layer in layers for tensor in _tensors(layer)}
    digest = hashlib.sha256(b"".join(_fingerprint(tensor) for tensor in _tensors(body) if id(tensor) not in inner))
    below = [digest.hexdigest()]
    for layer in layers:
        digest.update(b"".join(_fingerprint(tensor) for tensor in _tensors(layer)))
        below.append(digest.hexdigest())
    return tuple(below)


def _tensors(module: Any) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _fingerprint(tensor: Tensor) -> bytes:
    """Sums of a tensor's bits along its rows and its columns, as integers that wrap around: any one change of a bit changes them.

    It takes a third of the time of a hash of the bytes, and is no guard against somebody who wants two tensors to agree.
    """
    bits = _as_integers(tensor.detach())
    if bits.ndim < 2:
        return bits.cpu().numpy().tobytes()
    sums = torch.cat([bits.sum(-1, dtype=torch.int64).flatten(), bits.sum(0, dtype=torch.int64).flatten()])
    return sums.cpu().numpy().tobytes()


def _as_integers(tensor: Tensor) -> Tensor:
    """The same memory as the widest integers that rows can be cut into."""
    tensor = tensor.contiguous()
    if tensor.ndim == 0:
        tensor = tensor.view(1)
    for width in (torch.int64, torch.int32, torch.int16):
        if (tensor.shape[-1] * tensor.itemsize) % width.itemsize == 0 and width.itemsize >= tensor.itemsize:
            return tensor.view(width)
    return tensor.view(torch.int8) if tensor.itemsize == 1 else tensor


class Boundaries:
    """Inputs of layers, and keys and values of prefixes, by what was read; at most `budget` bytes of them."""

    def __init__(self, budget: int) -> None:
        self._room = budget
        self._below: tuple[str, ...] = ()
        self._before: tuple[str, ...] = ()
        self._kept: dict[tuple[Hashable, int], tuple[str, tuple[Tensor, ...]]] = {}

    def begin(self, below: tuple[str, ...]) -> None:
        """A model with these weights comes next."""
        self._before, self._below = self._below, below

    def get(self, what: Hashable, layer: int) -> tuple[Tensor, ...] | None:
        """What was kept under this name for this layer, if it was made by the very weights that are below the layer now."""
        digest, tensors = self._kept.get((what, layer), ("", ()))
        return tensors if digest == self._below[layer] else None

    def wants(self, what: Hashable, layer: int) -> bool:
        """Whether to put: nothing is kept here yet, or it is of other weights, and those of now are here for the second time running."""
        held = self._kept.get((what, layer))
        if held is None:
            return True
        return held[0] != self._below[layer] and len(self._before) > layer and self._before[layer] == self._below[layer]

    def put(self, what: Hashable, layer: int, *tensors: Tensor) -> None:
        """Keep tensors of this layer in the place of older ones, if there is room."""
        old = self._kept.pop((what, layer), ("", ()))[1]
        self._room += _bytes(old)
        if _bytes(tensors) <= self._room:
            self._room -= _bytes(tensors)
            self._kept[what, layer] = (self._below[layer], tensors)

    def highest(self, what: Hashable, layers: int) -> tuple[int, Tensor] | None:
        """The highest layer, and its input, from which this can be read on; None if it has to be read from the first."""
        for layer in range(layers - 1, 0, -1):
            found = self.get(what, layer)
            if found is not None:
                return layer, found[0]
        return None


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
