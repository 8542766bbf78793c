"""Answers of a batch of prompts behind a shared prefix: one token at a time, rows leaving as they finish."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cpt_lab.evaluation.prefix_attention import Prefix, Rows
from cpt_lab.evaluation.reader import Reader
from cpt_lab.evaluation.writing import Stops, Writing, drawn, likeliest

WORTH_LEAVING = 7 / 8  # finished rows are dropped once so few of those held go on: dropping copies the others


def write_answers(
    reader: Reader, prompts: Sequence[Sequence[int]], how: Writing, *, prefix: Prefix | None, stops: Stops, chances: Tensor | None
) -> list[list[int]]:
    """The tokens that the model writes after every prompt, each behind the prefix; `chances` [prompts, max_tokens] are for draws."""
    tokens, rows = _padded(prompts, prefix, room=how.max_tokens, device=reader.device)
    written: list[list[int]] = [[] for _ in prompts]
    held = list(range(len(prompts)))  # the prompt of every row
    going = set(held)
    for step in range(how.max_tokens):
        logits = reader.logits(reader.read(tokens, rows)[:, -1])
        if how.draw is None:
            chosen = likeliest(logits)
        else:
            assert chances is not None
            chosen = drawn(logits, how.draw, chances[held, step].to(logits.device))
        for prompt, token in zip(held, chosen.tolist(), strict=True):
            if prompt in going:
                written[prompt].append(token)
                if stops.after(written[prompt]):
                    going.remove(prompt)
        if not going:
            break
        if len(going) <= WORTH_LEAVING * len(held):
            staying = [row for row, prompt in enumerate(held) if prompt in going]
            held = [held[row] for row in staying]
            index = torch.tensor(staying, device=reader.device)
            chosen = chosen[index]
            rows.keep(index)
        rows.grow()
        tokens = chosen[:, None]
    return written


def _padded(prompts: Sequence[Sequence[int]], prefix: Prefix | None, *, room: int, device: torch.device) -> tuple[Tensor, Rows]:
    """Prompts filled up on their left to one length, so that all are continued in the same column."""
    longest = max(len(prompt) for prompt in prompts)
    missing = torch.tensor([longest - len(prompt) for prompt in prompts])[:, None]
    tokens = torch.tensor([[prompt[-1]] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    columns = torch.arange(longest)[None] - missing
    positions = columns.clamp(min=0) + (prefix.length if prefix else 0)
    segments = torch.where(columns < 0, -1, 0)
    return tokens.to(device), Rows(prefix, positions.to(device), segments.to(device), room=room)
