"""Attention of many rows behind one shared prefix: its keys and values are held once, and one softmax runs over both parts.

Shapes: B rows, H query heads, K key-value heads, G = H / K, T new tokens, S tokens of the rows so far, P of the prefix, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cpt_lab.families import FAMILIES

NAME = "cpt_lab_shared_prefix"  # among transformers' attention implementations
SCORES = {"cpu": 2**22, "cuda": 2**28}  # attention scores that are held at a time
MOVING_ROTATIONS = ("dynamic", "longrope")  # they turn all tokens by the length of the longest row: a prefix read alone is turned otherwise

Keep = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Prefix:
    """What all rows begin with, by layer: keys and values, each [K, P, D]."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def length(self) -> int:
        return int(self.keys[0].shape[1])


class Rows:
    """The tokens of a batch beyond the prefix: where they stand, who sees whom, and, with `room` or `keep`, their keys and values.

    `positions` and `segments` are [B, T]. A token sees what stands before it in its row, if that is of segment 0 or of its own: several
    continuations of one text share a row, and padding, of segment -1, is seen by nobody. Text that is written later is of segment 0.
    """

    def __init__(self, prefix: Prefix | None, positions: Tensor, segments: Tensor, *, room: int = 0, keep: bool = False) -> None:
        self.prefix = prefix
        self.positions = positions
        self._segments = segments
        self._plain = bool((segments == 0).all())
        self._capacity = positions.shape[1] + room if room or keep else 0
        self._new = positions.shape[1]
        self._stored: dict[int, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, tuple[Tensor | None, Tensor | None]] = {}

    def grow(self) -> None:
        """One more token at the end of every row."""
        self._new = 1
        self.positions = torch.cat([self.positions, self.positions[:, -1:] + 1], dim=1)
        self._segments = torch.cat([self._segments, torch.zeros_like(self._segments[:, -1:])], dim=1)
        self._masks.clear()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.positions, self._segments = self.positions[rows], self._segments[rows]
        self._stored = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._stored.items()}
        self._masks.clear()

    def stored(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, S, D] of a layer."""
        keys, values = self._stored[layer]
        return keys[:, :, : self.positions.shape[1]], values[:, :, : self.positions.shape[1]]

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, S, D] of all tokens of the rows, given those [B, K, T, D] of the new ones."""
        if not self._capacity:
            return keys, values
        if layer not in self._stored:
            size = (*keys.shape[:2], self._capacity, keys.shape[3])
            self._stored[layer] = keys.new_empty(size), values.new_empty(size)
        stop = self.positions.shape[1]
        for held, new in zip(self._stored[layer], (keys, values), strict=True):
            held[:, :, stop - self._new : stop] = new
        return self.stored(layer)

    def masks(self, window: int | None) -> tuple[Tensor | None, Tensor | None]:
        """What to add to the scores of the new tokens, against the prefix [B, T, P] and their own rows [B, T, S]; None is nothing."""
        if window not in self._masks:
            self._masks[window] = self._prefix_mask(window), self._own_mask(window)
        return self._masks[window]

    def _prefix_mask(self, window: int | None) -> Tensor | None:
        new = self.positions[:, -self._new :]
        if self.prefix is None or window is None or int(new.max()) < window:
            return None
        places = torch.arange(self.prefix.length, device=new.device)
        return _bias(new[:, :, None] - places < window)

    def _own_mask(self, window: int | None) -> Tensor | None:
        total = self.positions.shape[1]
        far = window is not None and total > window
        if self._new == 1 and self._plain and not far:
            return None
        order = torch.arange(total, device=self.positions.device)
        new, segments = order[-self._new :], self._segments
        seen = (order <= new[:, None]) & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, -self._new :, None]))
        if far:
            assert window is not None
            seen &= self.positions[:, -self._new :, None] - self.positions[:, None, :] < window
        return _bias(seen)


def _bias(seen: Tensor) -> Tensor:
    """0 where a key is seen; where not, a number that leaves nothing of it, and no NaN in a row that sees nothing."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, torch.finfo(torch.float32).min)


def why_not(model: Any) -> str:
    """Why the attention of this module cannot be that of the model; empty if it can."""
    config = model.config
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {str(rope.get("rope_type")) for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is no family of cpt_lab"
    if kinds & set(MOVING_ROTATIONS):
        return f"its rotations ({', '.join(sorted(kinds & set(MOVING_ROTATIONS)))}) depend on the longest text read"
    if getattr(config, "reorder_and_upcast_attn", False):
        return "its attention is computed in float32 (reorder_and_upcast_attn)"
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "its layers lie on several devices"
    return ""


@contextmanager
def shared_prefix(model: Any) -> Iterator[None]:
    """Within the block the model attends by `attend`, and its forward pass takes `rows`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    kept = model.config._attn_implementation
    model.config._attn_implementation = NAME  # one object for all modules; transformers' own setter would look for kernels
    try:
        yield
    finally:
        model.config._attn_implementation = kept


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: None, *, rows: Rows, scaling: float, **settings: Any
) -> tuple[Tensor, None]:
    """Attention [B, T, H, D] of new tokens over the prefix and their own rows, softmax(s q k) v with s = `scaling`.

    `query` is [B, H, T, D]; `key` and `value` are those of the new tokens, [B, K, T, D]. Of a family's settings it knows `softcap` c
    (scores become c tanh(score / c)) and `sliding_window`. Long texts are taken in pieces, so that few scores are held at a time.
    """
    layer = module.layer_idx
    keys, values = rows.extended(layer, key, value)
    new, total = query.shape[2], keys.shape[2]
    prefix = (rows.prefix.keys[layer], rows.prefix.values[layer]) if rows.prefix else None
    masks = rows.masks(settings.get("sliding_window"))
    scores = query.shape[0] * query.shape[1] * (total + (prefix[0].shape[1] if prefix else 0))
    step = max(1, SCORES[query.device.type] // scores)
    out = torch.empty_like(query)
    for start in range(0, new, step):
        stop = min(start + step, new)
        last = total - new + stop  # later keys are seen by none of the piece
        biases = tuple(None if mask is None else mask[:, start:stop] for mask in masks)
        own_bias = None if biases[1] is None else biases[1][:, :, :last]
        own = (keys[:, :, :last], values[:, :, :last], own_bias)
        shared = (*prefix, biases[0]) if prefix else None
        out[:, :, start:stop] = _joined(query[:, :, start:stop] * scaling, own, shared, settings.get("softcap"))
    return out.transpose(1, 2), None


_Part = tuple[Tensor, Tensor, Tensor | None]  # keys, values, what is added to the scores


def _joined(query: Tensor, own: _Part, prefix: _Part | None, softcap: float | None) -> Tensor:
    """softmax over both parts, [B, H, T, D]: exp(score - m) of each with a common m, and the sum of both below."""
    rows, _, new, width = query.shape
    keys, values, bias = own
    groups = keys.shape[1]
    grouped = query.reshape(rows, groups, -1, width)
    weights = _scores(
        (grouped @ keys.mT).view(rows, groups, -1, new, keys.shape[2]), bias if bias is None else bias[:, None, None], softcap
    )
    if prefix is None:
        return (torch.softmax(weights, -1).to(query.dtype).flatten(2, 3) @ values).view(query.shape)
    keys, shared_values, bias = prefix
    folded = grouped.transpose(0, 1).reshape(groups, -1, width) @ keys.mT  # one product for all rows: [K, B G T, D] against [K, D, P]
    common = _scores(folded.view(groups, rows, -1, new, keys.shape[1]), bias if bias is None else bias[None, :, None], softcap)
    top = torch.maximum(weights.amax(-1, keepdim=True), common.amax(-1, keepdim=True).transpose(0, 1))
    weights.sub_(top).exp_()
    common.sub_(top.transpose(0, 1)).exp_()
    total = weights.sum(-1, keepdim=True) + common.sum(-1, keepdim=True).transpose(0, 1)
    ours = weights.to(query.dtype).flatten(2, 3) @ values
    theirs = common.to(query.dtype).view(groups, -1, keys.shape[1]) @ shared_values
    both = ours.float() + theirs.view(groups, rows, -1, width).transpose(0, 1)
    return (both / total.flatten(2, 3)).to(query.dtype).view(query.shape)


def _scores(products: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Scores in float32, capped and with the bias added; in the place of the products if these are in float32."""
    scores = products.float()
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    return scores if bias is None else scores.add_(bias)
