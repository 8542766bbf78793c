"""Reading with a live model: tokens in, hidden states and logits out, layer by layer if some of them are known already."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cpt_lab.evaluation.language_model import check_finite
from cpt_lab.evaluation.prefix_attention import Rows, shared_prefix
from cpt_lab.families import FAMILIES


class Reader:
    """A transformers model as a function of tokens behind a shared prefix; it keeps nothing from one call to the next."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = model.device
        self._body = model.base_model
        self._head = model.get_output_embeddings()
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        self.vocabulary: int = self._head.weight.shape[0]

    @property
    def layers(self) -> Any:
        """The list of the model's layers as it is now."""
        return getattr(self._body, FAMILIES[self.model.config.model_type].layer.split(".")[0])

    def read(self, tokens: Tensor, rows: Rows) -> Tensor:
        """The last hidden states [B, T, hidden] of new tokens [B, T] of the rows."""
        with torch.no_grad(), shared_prefix(self.model):
            positions = rows.positions[:, -tokens.shape[1] :]
            states: Tensor = self._body(input_ids=tokens, position_ids=positions, use_cache=False, rows=rows).last_hidden_state
        return states

    def read_from(
        self, tokens: Tensor, rows: Rows, *, start: tuple[int, Tensor] | None = None, record: Collection[int] = ()
    ) -> tuple[Tensor, Mapping[int, Tensor]]:
        """As `read`, with the inputs [B, T, hidden] of the layers to record; `start` is a layer and its input, known from before.

        The layers below `start` are left out: what is above them does the same work on the same bits.
        """
        with _recording(self.layers, record) as inputs, _beginning(self.layers, start):
            return self.read(tokens, rows), inputs

    def logits(self, states: Tensor) -> Tensor:
        """Logits [N, vocabulary] of last hidden states [N, hidden]; NonFiniteLogits if any is not finite."""
        with torch.no_grad():
            logits: Tensor = self._head(states)
            if self._softcap is not None:
                logits = torch.tanh(logits / self._softcap) * self._softcap
        check_finite(logits)
        return logits


class _Known(torch.nn.Module):
    """In the place of a layer: what is known of its output, or its input as it comes."""

    def __init__(self, states: Tensor | None) -> None:
        super().__init__()
        self._states = states

    def forward(self, states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states if self._states is None else self._states


@contextmanager
def _beginning(layers: Any, start: tuple[int, Tensor] | None) -> Iterator[None]:
    """Within the block the layers below the start do no work."""
    if start is None:
        yield
        return
    first, states = start
    kept = [layers[place] for place in range(first)]
    try:
        for place in range(first):
            layers[place] = _Known(states if place == first - 1 else None)
        yield
    finally:
        for place, layer in enumerate(kept):
            layers[place] = layer


@contextmanager
def _recording(layers: Any, record: Collection[int]) -> Iterator[Mapping[int, Tensor]]:
    """Within the block the mapping fills with what these layers get."""
    inputs: dict[int, Tensor] = {}

    def note(place: int) -> Any:
        return lambda _, given: inputs.__setitem__(place, given[0])

    hooks = [layers[place].register_forward_pre_hook(note(place)) for place in record]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
