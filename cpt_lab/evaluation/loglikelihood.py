"""Log-likelihoods of continuations: the choices of a question stand in one row behind it, and only their own logits are made.

A row holds the question's tokens, then the first choice without its last token, then the next; choices see the question and themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cpt_lab.evaluation.prefix_attention import Prefix, Rows
from cpt_lab.evaluation.reader import Reader

LOGITS = {"cpu": 2**24, "cuda": 2**28}  # logits that are held at a time


@dataclass(frozen=True)
class Question:
    """The tokens that the shared prefix leaves of a context, never none; and its continuations, by the place of their request."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def length(self) -> int:
        """The tokens that are read: the last of a continuation is not."""
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.choices)


@dataclass(frozen=True)
class Packed:
    """A batch of questions as tensors: what is read, and which of its states must foretell which tokens of which choice.

    `states` are the places in the flattened [B T] of the states that are asked, each once; scored token i is `targets[i]`, foretold by
    state `asked[i]`, of choice `owners[i]`; `asked` ascends. `places` are the requests of the choices.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    states: Tensor
    asked: Tensor
    targets: Tensor
    owners: Tensor
    places: tuple[int, ...]

    def rows(self, prefix: Prefix | None) -> Rows:
        """The batch behind its prefix."""
        return Rows(prefix, self.positions + (prefix.length if prefix else 0), self.segments)


def pack(questions: Sequence[Question], device: torch.device) -> Packed:
    """The batch of these questions, filled up on the right to one length."""
    longest = max(question.length for question in questions)
    lines = [_line(question, longest) for question in questions]
    scored: list[tuple[int, int, int]] = []  # state, target, choice
    places: list[int] = []
    for row, question in enumerate(questions):
        behind = len(question.context)
        for place, choice in question.choices:
            before = [len(question.context) - 1, *range(behind, behind + len(choice) - 1)]
            scored += [(row * longest + column, token, len(places)) for column, token in zip(before, choice, strict=True)]
            places.append(place)
            behind += len(choice) - 1
    scored.sort(key=lambda one: one[0])
    states, asked = torch.unique_consecutive(torch.tensor([one[0] for one in scored]), return_inverse=True)
    targets, owners = (torch.tensor([one[which] for one in scored]) for which in (1, 2))
    tokens, positions, segments = (torch.tensor([line[which] for line in lines], device=device) for which in range(3))
    states, asked, targets, owners = (tensor.to(device) for tensor in (states, asked, targets, owners))
    return Packed(tokens, positions, segments, states, asked, targets, owners, places=tuple(places))


def _line(question: Question, longest: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, positions and segments of one row."""
    context = len(question.context)
    tokens, positions, segments = list(question.context), list(range(context)), [0] * context
    for segment, (_, choice) in enumerate(question.choices, start=1):
        tokens += choice[:-1]
        positions += range(context, context + len(choice) - 1)
        segments += [segment] * (len(choice) - 1)
    fill = longest - len(tokens)
    return tokens + [tokens[-1]] * fill, positions + [0] * fill, segments + [-1] * fill


def log_likelihoods(reader: Reader, states: Tensor, packed: Packed) -> list[tuple[float, bool]]:
    """For every choice sum log p(token) and whether each of its tokens is the likeliest, from the last hidden states [B, T, hidden].

    Log-probabilities are float32, as the harness's; they are summed in float64.
    """
    asked = states.flatten(0, 1)[packed.states]
    scored = [0, *torch.bincount(packed.asked).cumsum(0).tolist()]  # how many tokens the states before each foretell
    step = max(1, LOGITS[states.device.type] // reader.vocabulary)
    values, hits = [], []
    for start in range(0, len(asked), step):
        stop = min(start + step, len(asked))
        logs = torch.log_softmax(reader.logits(asked[start:stop]), -1, dtype=torch.float32)
        these = slice(scored[start], scored[stop])
        whose, targets = packed.asked[these] - start, packed.targets[these]
        values.append(logs[whose, targets])
        hits.append(logs.argmax(-1)[whose] == targets)
    owners, count = packed.owners.cpu(), len(packed.places)  # sums on the CPU have one order
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, torch.cat(values).cpu().double())
    misses = torch.zeros(count, dtype=torch.int64).index_add_(0, owners, (~torch.cat(hits)).cpu().long())
    return list(zip(sums.tolist(), (misses == 0).tolist(), strict=True))
