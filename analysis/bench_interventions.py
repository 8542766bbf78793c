"""Ladders of interventions on a live model against what they cannot be cheaper than: one point of them, and the bytes that they change.

A random OLMo 2 of hidden size 512 in bfloat16 on one thread; ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cpt_lab.architecture import Slice
from cpt_lab.edits import narrow
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.patch import LiveModel, Patch
from cpt_lab.specs import FolderCheckpoint, Heads, ModelShape

Weights = Mapping[str, Tensor]

POINTS = 20
ROUNDS = 3
CHANGE = 0.034  # size of the delta against the weights, as a CPT run leaves it
SHAPE = ModelShape(
    name="bench",
    family="olmo2",
    hidden_size=512,
    num_layers=4,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    mlp_size=2048,
    vocab_size=512,
    context=64,
)
BASE = FolderCheckpoint(path="base", weights_digest="base", shape=SHAPE)


class Pair(NamedTuple):
    """A model, its own weights and those of its base."""

    model: Any
    tuned: Weights
    base: Weights

    def live(self) -> LiveModel:
        """The model with nothing applied to it and nothing remembered."""
        return LiveModel(self.model, self.tuned, {"base": self.base})


def main() -> None:
    """Print the ratios, each the median of three rounds in which both sides take turns."""
    torch.set_num_threads(1)
    pair = random_pair()
    one, ladder, plain = rounds(lambda: truncations(pair, [50]), lambda: truncations(pair, percents()), lambda: plain_truncation(pair))
    _print(f"{POINTS} truncations against one", ladder, one)
    _print(f"{POINTS} truncations by an SVD for each, against the same {POINTS}", [POINTS * seconds for seconds in plain], ladder)
    steps, once, copied = rounds(lambda: rewinds(pair, POINTS), lambda: rewinds(pair, 1), lambda: plain_copies(pair))
    _print(f"{POINTS} rewinds against copying the bytes that they change", steps, copied)
    _print(f"{POINTS} rewinds against rewinding all heads once", steps, once)


def random_pair() -> Pair:
    """A random model and a base that differs from it by a few per cent everywhere."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        SHAPE.family,
        hidden_size=SHAPE.hidden_size,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        intermediate_size=SHAPE.mlp_size,
        vocab_size=SHAPE.vocab_size,
        max_position_embeddings=SHAPE.context,
        pad_token_id=0,
    )
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tuned = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return Pair(model, tuned, {name: _changed(tensor, generator) for name, tensor in tuned.items()})


def percents() -> list[int]:
    """The kept percentages of a ladder: 5, 10, ..., 100."""
    return [100 * point // POINTS for point in range(1, POINTS + 1)]


def truncations(pair: Pair, kept: list[int]) -> float:
    """Seconds for a fresh live model to take these truncations one after another."""
    roles: Any = ("q", "k", "v", "o", "gate", "up", "down")
    return _seconds_of(pair.live(), [Truncate(base=BASE, percent=percent, roles=roles).patch(SHAPE) for percent in kept])


def plain_truncation(pair: Pair) -> float:
    """Seconds for one truncation by torch.linalg.svd of every block, in float64."""
    blocks = [edit.target for edit in Truncate(base=BASE, percent=50, roles=("q", "k", "v", "o", "gate", "up", "down")).patch(SHAPE).edits]
    started = time.process_time()
    for block in blocks:
        tuned, base = (narrow(weights, block).double() for weights in (pair.tuned, pair.base))
        left, singular, right = torch.linalg.svd(tuned - base, full_matrices=False)
        rank = len(singular) // 2
        (base + (left[:, :rank] * singular[:rank]) @ right[:rank]).bfloat16()
    return time.process_time() - started


def rewinds(pair: Pair, points: int) -> float:
    """Seconds for a fresh live model to rewind all heads in so many steps."""
    return _seconds_of(pair.live(), [patch for patch, _ in _steps(points)])


def plain_copies(pair: Pair) -> float:
    """Seconds to copy the slices that each rewind of the ladder adds to the last."""
    parameters = dict(pair.model.named_parameters())
    views = [(narrow(parameters, part), narrow(pair.base, part)) for _, added in _steps(POINTS) for part in added]
    with torch.no_grad():
        started = time.process_time()
        for target, source in views:
            target.copy_(source)
        seconds = time.process_time() - started
        for name, parameter in parameters.items():
            parameter.copy_(pair.tuned[name])
    return seconds


def rounds(*measures: Callable[[], float]) -> list[list[float]]:
    """The seconds of each measure in every round; a first round, which warms up, does not count."""
    taken = [[measure() for measure in measures] for _ in range(ROUNDS + 1)]
    return [list(seconds) for seconds in zip(*taken[1:], strict=True)]


def _changed(tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    return (tensor.float() + CHANGE * tensor.float().std(correction=0) * noise).to(tensor.dtype)


def _seconds_of(live: LiveModel, patches: list[Patch]) -> float:
    started = time.process_time()
    for patch in patches:
        live.set(patch)
    seconds = time.process_time() - started
    live.reset()
    return seconds


def _steps(points: int) -> list[tuple[Patch, list[Slice]]]:
    """Rewinds of 1/points, 2/points, ... of all heads in a random order, and the slices that each adds."""
    count = SHAPE.total_heads
    order = [divmod(int(head), SHAPE.num_heads) for head in torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    steps: list[tuple[Patch, list[Slice]]] = []
    before: set[Slice] = set()
    for point in range(1, points + 1):
        patch = Rewind(base=BASE, select=Heads(heads=tuple(order[: count * point // points]))).patch(SHAPE)
        steps.append((patch, [edit.target for edit in patch.edits if edit.target not in before]))
        before = {edit.target for edit in patch.edits}
    return steps


def _print(what: str, above: list[float], below: list[float]) -> None:
    ratio = statistics.median(one / other for one, other in zip(above, below, strict=True))
    print(f"{what}: {ratio:.1f}x ({statistics.median(above):.3g} s, {statistics.median(below):.3g} s)", flush=True)


if __name__ == "__main__":
    main()
