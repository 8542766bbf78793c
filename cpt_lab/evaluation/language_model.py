"""The model side of a session: the harness's own Hugging Face model around one that is already in memory.

A faster model side takes the place of this file: it answers lists of requests by `generate_until`, `loglikelihood` and
`loglikelihood_rolling` as the harness's interface has them, and nothing else in a session knows how.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessor, LogitsProcessorList


class NonFiniteLogits(ValueError):
    """The model says NaN or infinity."""


class LanguageModel(HFLM):
    """Answers exactly as the harness's `hf` model does, in batches that depend on the requests alone.

    It holds no answers: the same weights say the same, whatever was asked before. `on_rows` is told how many rows went through the model.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int, on_rows: Callable[[int], None]) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch)
        self._on_rows = on_rows

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
        checks = LogitsProcessorList([_FiniteLogits()])
        answers: torch.Tensor = super()._model_generate(context, max_length, stop, logits_processor=checks, **settings)
        self._on_rows(len(context))
        return answers

    def _model_call(self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> torch.Tensor:
        logits: torch.Tensor = super()._model_call(inps, attn_mask, labels)
        check_finite(logits)
        self._on_rows(len(inps))
        return logits

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:  # noqa: ARG002
        # The harness draws a bar for every batch of windows, whatever it was asked.
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)


class _FiniteLogits(LogitsProcessor):
    """Passes the scores of the next token on unchanged, if they are finite."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        check_finite(scores)
        return scores


def check_finite(logits: torch.Tensor) -> None:
    """NonFiniteLogits if any value is NaN or infinite."""
    low, high = torch.aminmax(logits)  # NaN wins both; several times as fast as a look at every value
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise NonFiniteLogits(f"{int((~torch.isfinite(logits)).sum())} of {logits.numel()} logits are not finite")
