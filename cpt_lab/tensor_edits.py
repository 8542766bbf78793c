"""Edits that mix whole tensors of several checkpoints, element by element: linear combinations, DARE, TIES.

The arithmetic is in float64 for weights stored in float32 and in float32 for weights stored in 16 bits, and is rounded once to the stored
dtype. Importing this module needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field

from cpt_lab.architecture import Slice
from cpt_lab.edits import Memo, SliceEdit, Sources, source_values

if TYPE_CHECKING:
    import torch

    from cpt_lab.weights import Weights

SELF = "self"  # the name by which an edit means the values that the slice has before it
EVERYTHING = Slice("*", 0, 0, 0)  # stands for every parameter as a whole
BLOCK = 1 << 16  # elements at a time: they stay in the cache, and no temporary is as large as a parameter


class TensorEdit(SliceEdit):
    """An edit of one slice, or with the target EVERYTHING of all parameters of floating point, less the slices in `but`."""

    but: tuple[Slice, ...] = ()

    def each(self, weights: Weights) -> Iterator[Self]:
        if self.target != EVERYTHING:
            yield self
            return
        for name in weights:
            if weights[name].is_floating_point():  # old checkpoints store masks beside their parameters
                without = [part for part in self.but if part.parameter == name]
                yield from (self.model_copy(update={"target": part, "but": ()}) for part in _rest(name, weights[name].shape, without))


class Combine(TensorEdit):
    """The weighted sum w_1 x_1 + w_2 x_2 + ... of the slice in several checkpoints.

    Where one weight is 1 and the others are 0 the values are those of that checkpoint, bit for bit.
    """

    kind: Literal["combine"] = "combine"
    terms: tuple[tuple[str, float], ...] = Field(min_length=1, description='(source, weight); the source "self" is the slice as it is')

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:  # noqa: ARG002 (nothing to keep)
        used = [(name, weight) for name, weight in self.terms if weight != 0]
        tensors = [_values_of(name, self.target, current, sources) for name, _ in used]
        if [weight for _, weight in used] == [1]:
            return tensors[0]

        def weighted_sum(total: torch.Tensor, *blocks: torch.Tensor) -> torch.Tensor:
            total.mul_(used[0][1])
            for (_, weight), block in zip(used[1:], blocks, strict=True):
                total.add_(block.mul_(weight))  # not alpha=weight: fused, its bits depend on how the memory lies
            return total

        return _by_blocks(current, tensors, weighted_sum) if used else current.new_zeros(current.shape)


class Dare(TensorEdit):
    """base + sum_i w_i m_i (x_i - base) / (1 - p), where each element of m_i is 0 with probability p and 1 otherwise.

    Drop And REscale (Yu et al. 2024, arXiv 2311.03099) of one delta or of several, which are then added as in task arithmetic.
    Every parameter and every term has a generator of its own, made of the seed, the parameter's name and the term's place, so that masks
    depend neither on the order in which parameters are asked for nor on the slice. With p = 0 it is the linear combination itself.
    """

    kind: Literal["dare"] = "dare"
    base: str
    terms: tuple[tuple[str, float], ...] = Field(min_length=1, description='(source, scale); the source "self" is the slice as it is')
    drop: float = Field(ge=0, lt=1, description="p")
    seed: int

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        if self.drop == 0:
            return Combine(target=self.target, terms=arithmetic(self.base, self.terms)).values(current, sources, memo)
        base = _values_of(self.base, self.target, current, sources)
        tensors = [_values_of(name, self.target, current, sources) for name, _ in self.terms]
        whole = _whole_shape(self.base, self.target, sources)
        masks = [_masked(self, place, whole) for place in range(len(self.terms))]
        scales = [scale / (1 - self.drop) for _, scale in self.terms]

        def rescaled(base: torch.Tensor, *blocks: torch.Tensor) -> torch.Tensor:
            total = base.clone()
            for scale, block, mask in zip(scales, blocks[: len(scales)], blocks[len(scales) :], strict=True):
                total.add_(block.sub_(base).mul_(scale).mul_(mask))
            return total

        return _by_blocks(current, [base, *tensors, *masks], rescaled)


class Ties(TensorEdit):
    """base + scale x the merged delta of n models: trim, elect a sign, mean of those that agree (Yadav et al. 2023, arXiv 2306.01708).

    1. Trim: of each delta x_i - base the share `keep` of largest magnitude stays, the rest becomes 0. Equals at the edge all stay.
    2. Elect: the sign of an element is that of the sum of the trimmed deltas; a sum of 0 elects none and leaves the base.
    3. Merge: the mean of the trimmed deltas that are not 0 and have the elected sign.

    The paper trims the delta of a whole model at once; here each slice is trimmed by itself, as mergekit does, so that a parameter can be
    made without looking at all the others. One model with keep = 1 and scale = 1 is that model bit for bit.
    """

    kind: Literal["ties"] = "ties"
    base: str
    models: tuple[str, ...] = Field(min_length=1, description='sources; "self" is the slice as it is')
    keep: float = Field(gt=0, le=1)
    scale: float

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:  # noqa: ARG002 (nothing to keep)
        import torch

        base = _values_of(self.base, self.target, current, sources)
        tensors = [_values_of(name, self.target, current, sources) for name in self.models]
        edges = [_edge(tensor, base, self.keep) for tensor in tensors]

        def one(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
            return torch.where((tuned - base).abs() >= edges[0], tuned, base)

        def merged(base: torch.Tensor, *blocks: torch.Tensor) -> torch.Tensor:
            deltas = torch.stack([block - base for block in blocks])
            limits = base.new_tensor(edges).view(-1, *[1] * base.ndim)
            trimmed = torch.where(deltas.abs() >= limits, deltas, 0)
            agrees = trimmed.sign() == trimmed.sum(0).sign()  # what is 0 agrees only where the mean is 0 anyway
            mean = torch.where(agrees, trimmed, 0).sum(0) / agrees.sum(0).clamp(min=1)
            return base.add_(mean.mul_(self.scale))

        return _by_blocks(current, [base, *tensors], one if len(tensors) == 1 and self.scale == 1 else merged)


def arithmetic(base: str, terms: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """base + sum_i scale_i (x_i - base) as the weights of a linear combination: (1 - sum_i scale_i) base + sum_i scale_i x_i."""
    return ((base, 1 - sum(scale for _, scale in terms)), *terms)


# ------------------------------------------------------------------------------------------------------------- helpers


def _values_of(name: str, part: Slice, current: torch.Tensor, sources: Sources) -> torch.Tensor:
    return current if name == SELF else source_values(name, part, current, sources)


def _by_blocks(like: torch.Tensor, inputs: Sequence[torch.Tensor], function: Callable[..., torch.Tensor]) -> torch.Tensor:
    """A function of single elements, applied to blocks of rows in the precision of the arithmetic; the result is as `like`.

    The function may write to its arguments.
    """
    import torch

    result = torch.empty(like.shape, dtype=like.dtype)
    rows = max(1, BLOCK // max(1, like.numel() // max(1, len(like))))
    scratch = [torch.empty((rows, *like.shape[1:]), dtype=_precise(like)) for _ in inputs]
    for start in range(0, len(like), rows):
        part = slice(start, min(start + rows, len(like)))
        blocks = (room[: part.stop - start].copy_(tensor[part]) for room, tensor in zip(scratch, inputs, strict=True))
        result[part] = function(*blocks)
    return result


def _precise(tensor: torch.Tensor) -> torch.dtype:
    import torch

    return torch.float32 if tensor.element_size() < 4 else torch.float64


def _edge(tuned: torch.Tensor, base: torch.Tensor, keep: float) -> float:
    """The smallest magnitude of tuned - base that belongs to the largest round(keep x elements); infinity if that is none."""
    count = int(keep * base.numel() + 0.5)
    if count == 0:
        return float("inf")
    magnitudes = (tuned.to(_precise(base)) - base).abs_().flatten().numpy()
    magnitudes.partition(magnitudes.size - count)  # in place: torch.kthvalue holds indices of eight bytes beside them
    return float(magnitudes[magnitudes.size - count])


def _masked(edit: Dare, place: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The mask of one term, drawn for the whole parameter and cut to the edit's slice."""
    import numpy as np
    import torch

    seed = hashlib.sha256(f"{edit.seed} {place} {edit.target.parameter}".encode()).digest()[:16]
    generator = np.random.default_rng(int.from_bytes(seed, "big"))
    kept = np.empty(int(np.prod(shape)), dtype=bool)
    for start in range(0, kept.size, BLOCK):  # numpy's stream does not depend on the blocks, torch's does
        block = kept[start : start + BLOCK]
        block[:] = generator.random(block.size, dtype=np.float32) >= edit.drop
    part = edit.target
    return torch.from_numpy(kept.reshape(shape)).narrow(part.axis, part.start, part.stop - part.start)


def _whole_shape(source: str, part: Slice, sources: Sources) -> tuple[int, ...]:
    return tuple(sources[source][part.parameter].shape)


def _rest(name: str, shape: Sequence[int], without: Sequence[Slice]) -> Iterator[Slice]:
    """What is left of a parameter without some slices of it, which all lie along one axis."""
    axis, start = without[0].axis if without else 0, 0
    for part in sorted(without):
        if part.axis != axis:
            raise ValueError(f"{name} cannot be divided along two axes at once: give slices along one")
        if part.start > start:
            yield Slice(name, axis, start, part.start)
        start = max(start, part.stop)
    if start < shape[axis]:
        yield Slice(name, axis, start, shape[axis])
