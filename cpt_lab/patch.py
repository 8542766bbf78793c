"""Patches: interventions as data. Applied to a mapping of weights, or in place to a live model and undone again, with the same bits.

A patch is a tuple of edits in order; an edit gives one slice of one parameter new values. A new kind of edit is one class with `values`
and its place in the union `Edit`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from cpt_lab.architecture import Slice
from cpt_lab.weights import open_weights

if TYPE_CHECKING:
    import torch

    from cpt_lab.weights import Weights

Sources = Mapping[str, "Weights"]


class Copy(BaseModel):
    """The slice takes the values that it has in the source checkpoint of this name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["copy"] = "copy"
    target: Slice
    source: str

    def values(self, current: torch.Tensor, sources: Sources) -> torch.Tensor:
        """The new values of the slice, of the shape and dtype of `current`; ValueError if the source has no such slice or dtype."""
        if self.source not in sources:
            raise ValueError(f"the patch copies from {self.source!r}, but its sources are {', '.join(sorted(sources)) or 'none'}")
        new = narrow(sources[self.source], self.target)
        if new.shape != current.shape:
            raise ValueError(f"{self.target.parameter} differs in shape from {self.source}: give two models of one architecture and size")
        if new.dtype != current.dtype:
            raise ValueError(
                f"{self.target.parameter} is {new.dtype} in {self.source} and {current.dtype} in the patched checkpoint: "
                "convert one of the checkpoints, so that a copy rounds nothing"
            )
        return new


Edit = Copy  # a union over `kind` as soon as there are two


class Patch(BaseModel):
    """Edits in the order in which they apply; where two of them write the same element, the later one counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    edits: tuple[Edit, ...] = ()

    def then(self, later: Patch) -> Patch:
        """This patch followed by another."""
        return Patch(edits=self.edits + later.edits)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def narrow(weights: Weights, part: Slice) -> torch.Tensor:
    """A view of the slice in its parameter; ValueError if the checkpoint has no such parameter or range."""
    if part.parameter not in weights:
        raise ValueError(f"{part.parameter} is not a parameter of this checkpoint: is it of the family and the size that were given?")
    return _view(weights[part.parameter], part)


def apply(patch: Patch, weights: Weights, sources: Sources) -> Weights:
    """The patched weights: parameters that no edit names are those of `weights` itself, the others are made when asked for."""
    return _Patched(patch, weights, sources)


class LiveModel:
    """A transformers model in memory that takes one patch after another and gives back every bit of its own weights.

    `weights` are the model's own as stored, `sources` those that patches copy from: folders, opened when first needed, or mappings. All
    values are made in the stored dtype and only then cast to the model's, as loading the patched checkpoint would do.
    """

    def __init__(self, model: torch.nn.Module, weights: Path | Weights, sources: Mapping[str, Path | Weights]) -> None:
        self.model = model
        self.patch = Patch()
        self._parameters = dict(model.named_parameters())  # a tied matrix appears once, under the name it is stored by
        self._weights = open_weights(weights) if isinstance(weights, Path) else weights
        self._sources = _Sources(sources)
        self._originals: dict[_Component, list[torch.Tensor]] = {}
        unknown = sorted(set(self._parameters) - set(self._weights))
        if unknown:
            raise ValueError(f"the model has a parameter {unknown[0]} that its checkpoint has not: give the folder it was loaded from")

    def set(self, patch: Patch) -> None:
        """Make the model the patched one, writing only what differs from the patch now applied. A patch that fails leaves no trace."""
        wanted = _components(patch)
        try:
            for component in [old for old in self._originals if old not in wanted]:
                self._restore(component)
            for component in wanted:
                if component not in self._originals:
                    self._write(component)
        except BaseException:
            self.reset()
            raise
        self.patch = patch

    def reset(self) -> None:
        """Give every parameter its own bits back."""
        for component in list(self._originals):
            self._restore(component)
        self.patch = Patch()

    def _write(self, component: _Component) -> None:
        import torch

        new = _new_values(component, self._weights, self._sources)
        live = [narrow(self._parameters, part) for part in new]
        self._originals[component] = [part.detach().clone() for part in live]
        with torch.no_grad():
            for part, values in zip(live, new.values(), strict=True):
                part.copy_(values)

    def _restore(self, component: _Component) -> None:
        import torch

        slices = dict.fromkeys(edit.target for edit in component)
        with torch.no_grad():
            for part, original in zip(slices, self._originals.pop(component), strict=True):
                narrow(self._parameters, part).copy_(original)


_Component = tuple[Edit, ...]  # edits whose slices overlap, in order; different components of a patch share no element


class _Patched(Mapping[str, "torch.Tensor"]):
    """Weights under a patch. Edited parameters are made anew each time they are asked for, so that none is kept in memory."""

    def __init__(self, patch: Patch, weights: Weights, sources: Sources) -> None:
        self._weights = weights
        self._sources = sources
        self._edits: dict[str, list[Edit]] = defaultdict(list)
        for edit in patch.edits:
            narrow(weights, edit.target)
            self._edits[edit.target.parameter].append(edit)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._edits:
            return self._weights[name]
        tensor = self._weights[name].clone()
        for edit in self._edits[name]:
            part = _view(tensor, edit.target)
            part.copy_(edit.values(part, self._sources))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class _Sources(Mapping[str, "Weights"]):
    """Source checkpoints by name, opened when first asked for."""

    def __init__(self, sources: Mapping[str, Path | Weights]) -> None:
        self._given = sources
        self._opened: dict[str, Weights] = {}

    def __getitem__(self, name: str) -> Weights:
        if name not in self._opened:
            given = self._given[name]
            self._opened[name] = open_weights(given) if isinstance(given, Path) else given
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def _new_values(component: _Component, weights: Weights, sources: Sources) -> dict[Slice, torch.Tensor]:
    """The values of all slices of a component after its edits."""
    if len(component) == 1:  # the usual case reads the slice alone, not its whole parameter
        edit = component[0]
        return {edit.target: edit.values(narrow(weights, edit.target), sources)}
    patched = apply(Patch(edits=component), weights, sources)
    return {edit.target: narrow(patched, edit.target) for edit in component}


def _view(tensor: torch.Tensor, part: Slice) -> torch.Tensor:
    size = tensor.shape[part.axis]
    if not 0 <= part.start <= part.stop <= size:
        raise ValueError(
            f"{part.parameter} has {size} entries along axis {part.axis}, not {part.stop}: the model is smaller than its description says"
        )
    return tensor.narrow(part.axis, part.start, part.stop - part.start)


def _components(patch: Patch) -> dict[_Component, None]:
    """The edits in groups whose slices overlap, so that each group can be written and undone without the others."""
    by_parameter: dict[str, list[Edit]] = defaultdict(list)
    for edit in patch.edits:
        by_parameter[edit.target.parameter].append(edit)
    return {group: None for edits in by_parameter.values() for group in _overlapping(edits)}


def _overlapping(edits: list[Edit]) -> list[_Component]:
    """Connected groups of edits of one parameter, each in the order of the patch."""
    if len({edit.target.axis for edit in edits}) > 1:
        return [tuple(edits)]  # slices of different axes always meet
    groups: list[list[int]] = []
    end = -1
    for index in sorted(range(len(edits)), key=lambda index: edits[index].target.start):
        if not groups or edits[index].target.start >= end:
            groups.append([])
        groups[-1].append(index)
        end = max(end, edits[index].target.stop)
    return [tuple(edits[index] for index in sorted(group)) for group in groups]
