"""Edits: one slice of one parameter gets new values. What every kind of edit is, and the plainest kind.

A new kind is a subclass of `SliceEdit` with its `kind` and `values`, and its place in the union `Edit` of patch.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from cpt_lab.architecture import Slice

if TYPE_CHECKING:
    import torch

    from cpt_lab.weights import Weights

Sources = Mapping[str, "Weights"]
Memo = MutableMapping[Hashable, Any]
ROOM = "room"  # in a memo: how many bytes more it may hold of what takes much memory


class SliceEdit(BaseModel):
    """A slice and what its new values are: data, so that it can be stored, compared and hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: str
    target: Slice

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:
        """The new values of the slice, of the shape and dtype of `current`, which is left as it is; ValueError if the sources do not fit.

        `memo` keeps what is worth computing once for many edits, such as factorisations, under keys of the edit's own that say all they
        depend on: kind, slice, and the `id` of each source, for a name may mean one checkpoint now and another later. `current` need not
        be among them: an edit gets the lasting memo only where its slice is as the checkpoint has it, and one that is thrown away where an
        earlier edit of the patch has changed any of its elements.
        """
        raise NotImplementedError(f"{self.kind} has no values")

    def each(self, weights: Weights) -> Iterable[Self]:  # noqa: ARG002 (some kinds speak of all weights)
        """The same edit as edits of the slices that there are in these weights."""
        return (self,)


class Copy(SliceEdit):
    """The slice takes the values that it has in the source checkpoint of this name."""

    kind: Literal["copy"] = "copy"
    source: str

    def values(self, current: torch.Tensor, sources: Sources, memo: Memo) -> torch.Tensor:  # noqa: ARG002 (nothing to keep)
        return source_values(self.source, self.target, current, sources)


def source_values(name: str, part: Slice, current: torch.Tensor, sources: Sources) -> torch.Tensor:
    """The slice in the source of this name; ValueError if there is no such source, or it differs from `current` in shape or dtype."""
    found = narrow(source(name, sources), part)
    if found.shape != current.shape:
        raise ValueError(f"{part.parameter} differs in shape from {name}: give two models of one architecture and size")
    if found.dtype != current.dtype:
        raise ValueError(
            f"{part.parameter} is {found.dtype} in {name} and {current.dtype} in the patched checkpoint: "
            "convert one of the checkpoints, so that it is clear where values are rounded"
        )
    return found


def source(name: str, sources: Sources) -> Weights:
    """The source checkpoint of this name; ValueError with the names that there are if it is none of them."""
    if name not in sources:
        raise ValueError(f"the patch reads from {name!r}, but its sources are {', '.join(sorted(sources)) or 'none'}")
    return sources[name]


def narrow(weights: Weights, part: Slice) -> torch.Tensor:
    """A view of the slice in its parameter; ValueError if the checkpoint has no such parameter or range."""
    if part.parameter not in weights:
        raise ValueError(f"{part.parameter} is not a parameter of this checkpoint: is it of the family and the size that were given?")
    return view(weights[part.parameter], part)


def view(tensor: torch.Tensor, part: Slice) -> torch.Tensor:
    """The slice of its parameter `tensor`, sharing its memory; ValueError if the parameter has no such range."""
    size = tensor.shape[part.axis]
    if not 0 <= part.start <= part.stop <= size:
        raise ValueError(
            f"{part.parameter} has {size} entries along axis {part.axis}, not {part.stop}: the model is smaller than its description says"
        )
    if part.axis == 0:
        return tensor[part.start : part.stop]  # in less time than narrow, which counts where slices are small
    return tensor.narrow(part.axis, part.start, part.stop - part.start)


def is_whole(part: Slice, tensor: torch.Tensor) -> bool:
    """Whether the slice is all of its parameter `tensor`."""
    return (part.start, part.stop) == (0, tensor.shape[part.axis])
