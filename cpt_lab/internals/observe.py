"""Watching a transformers model read one prompt: its attention, and what its layers give out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpt_lab.internals.similarity import entropy


class Entropies(NamedTuple):
    """In nats, (layers, heads) each: of the last position's attention, and the mean over all positions."""

    last: Tensor
    mean: Tensor


def attention_entropies(model: Any, layers: str, ids: Tensor) -> Entropies:
    """The entropy of every head's attention over a prompt `ids` (tokens,), before the model writes its first token.

    `layers` is the name of the model's list of layers. Attention is computed plainly, one layer at a time in memory: layers x heads x
    tokens^2 numbers would not fit.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def watch(_: Any, __: Any, output: tuple[Tensor, Tensor]) -> None:
        (weights,) = output[1]  # (heads, tokens, tokens)
        of_positions = entropy(weights)
        found.append((of_positions[:, -1], of_positions.mean(-1)))

    with _plain_attention(model), _hooked([_attention(layer) for layer in model.get_submodule(layers)], watch):
        _read(model, ids)
    last, mean = (torch.stack(part).cpu() for part in zip(*found, strict=True))
    return Entropies(last, mean)


def attention_maps(model: Any, layers: str, ids: Tensor, shown: Sequence[int]) -> dict[int, Tensor]:
    """The attention (heads, tokens, tokens) of these layers over a prompt `ids` (tokens,), rows by what looks, in float32."""
    found: list[Tensor] = []

    def watch(_: Any, __: Any, output: tuple[Tensor, Tensor]) -> None:
        (weights,) = output[1]
        found.append(weights.float().cpu())

    every = list(model.get_submodule(layers))
    there = sorted(shown)
    with _plain_attention(model), _hooked([_attention(every[layer]) for layer in there], watch):
        _read(model, ids)
    return dict(zip(there, found, strict=True))


def layer_means(model: Any, layers: str, ids: Tensor) -> Tensor:
    """The mean over a prompt's tokens of what each layer gives out, (layers, hidden) in float32."""
    found: list[Tensor] = []

    def watch(_: Any, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        (hidden,) = output if isinstance(output, Tensor) else output[0]
        found.append(hidden.float().mean(0))

    with _hooked(list(model.get_submodule(layers)), watch):
        _read(model, ids)
    return torch.stack(found).cpu()


def _read(model: Any, ids: Tensor) -> None:
    with torch.inference_mode():
        model.base_model(input_ids=ids[None].to(model.device), use_cache=False)


def _attention(layer: Any) -> Any:
    """The attention module of a layer: the one that gives out weights beside its output."""
    (found,) = (module for module in layer.modules() if type(module).__name__.endswith("Attention"))
    return found


@contextmanager
def _hooked(modules: list[Any], watch: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    handles = [module.register_forward_hook(watch) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Within the block the model computes attention by its own plain code, which gives the weights out."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
