"""Patches: interventions as data. Applied to a mapping of weights, or in place to a live model and undone again, with the same bits.

A patch is a tuple of edits in order; an edit gives one slice of one parameter new values (edits.py). A new kind of edit takes its place in
the union `Edit`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from cpt_lab.architecture import Slice
from cpt_lab.edits import ROOM, Copy, Memo, Sources, is_whole, narrow, view
from cpt_lab.layers import LayerDrop, LiveLayers, Remaining
from cpt_lab.spectral_edits import RotateVectors, SingularValues, TruncateDelta
from cpt_lab.tensor_edits import Combine, Dare, Ties
from cpt_lab.weights import open_weights

if TYPE_CHECKING:
    import torch

    from cpt_lab.weights import Weights

Edit = Annotated[Copy | Combine | Dare | Ties | TruncateDelta | SingularValues | RotateVectors, Field(discriminator="kind")]


class Patch(BaseModel):
    """Edits in the order in which they apply, and layers that go when all edits are done.

    Where two edits write the same element, the later one counts. Edits name layers by the numbers they have before any goes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    edits: tuple[Edit, ...] = ()
    drop: LayerDrop | None = None

    def then(self, later: Patch) -> Patch:
        """This patch followed by another, which means layers by the same numbers."""
        drop = self.drop.also(later.drop) if self.drop and later.drop else self.drop or later.drop
        return Patch(edits=self.edits + later.edits, drop=drop)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def apply(patch: Patch, weights: Weights, sources: Sources) -> Weights:
    """The patched weights: parameters that no edit names are those of `weights` itself, the others are made when asked for.

    Where layers go, the names are those of the shorter model.
    """
    patched = _Patched(_each(patch, weights), weights, sources, {ROOM: 0})  # a parameter is asked for once when it is written
    return patched if patch.drop is None else Remaining(patch.drop, patched)


class LiveModel:
    """A transformers model in memory that takes one patch after another and gives back every bit of its own weights.

    `weights` are those the model was loaded from, `sources` those that patches read: folders, opened when first needed, or mappings. All
    values are made in the stored dtype and only then cast to the model's, as loading the patched checkpoint would do; its own are read
    from `weights` again, so that no second copy of a model is held.
    """

    def __init__(self, model: torch.nn.Module, weights: Path | Weights, sources: Mapping[str, Path | Weights]) -> None:
        self.model = model
        self.patch = Patch()
        self._layers = LiveLayers(model)
        self._parameters = dict(model.named_parameters())  # a tied matrix appears once, under the name it is stored by
        self._weights = open_weights(weights) if isinstance(weights, Path) else weights
        self._sources = _Sources(sources)
        self._applied: dict[_Component, None] = {}
        self._touched: set[Slice] = set()  # what may differ from the model's own
        self._memo: Memo = {}
        unknown = sorted(set(self._parameters) - set(self._weights))
        if unknown:
            raise ValueError(f"the model has a parameter {unknown[0]} that its checkpoint has not: give the folder it was loaded from")

    def set(self, patch: Patch) -> None:
        """Make the model the patched one, writing only what differs from the patch now applied. A patch that fails leaves no trace."""
        wanted = _components(_each(patch, self._parameters))
        new = [component for component in wanted if component not in self._applied]
        try:
            self._restore(self._touched - _targets(wanted))
            for component in new:
                self._write(_new_values(component, self._weights, self._sources, self._memo))
            self._layers.set(patch.drop)
        except BaseException:
            self.reset()
            raise
        self.patch, self._applied = patch, wanted

    def reset(self) -> None:
        """Give every parameter its own bits back, and the model its layers."""
        self._layers.set(None)
        self._restore(self._touched)
        self.patch, self._applied = Patch(), {}

    def _restore(self, slices: Set[Slice]) -> None:
        self._write({part: narrow(self._weights, part) for part in sorted(slices)})
        self._touched -= slices

    def _write(self, new: Mapping[Slice, torch.Tensor]) -> None:
        import torch

        self._touched |= new.keys()
        with torch.no_grad():
            for part, values in new.items():
                narrow(self._parameters, part).copy_(values)


_Component = tuple[Edit, ...]  # edits whose slices overlap, in order; different components of a patch share no element


class _Patched(Mapping[str, "torch.Tensor"]):
    """Weights under the edits of a patch. Edited parameters are made anew each time they are asked for, so that none is kept in memory."""

    def __init__(self, edits: Iterable[Edit], weights: Weights, sources: Sources, memo: Memo) -> None:
        self._weights = weights
        self._sources = sources
        self._memo = memo
        self._edits: dict[str, list[Edit]] = defaultdict(list)
        for edit in edits:
            narrow(weights, edit.target)
            self._edits[edit.target.parameter].append(edit)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._edits:
            return self._weights[name]
        own, edits = self._weights[name], self._edits[name]
        if len(edits) == 1 and is_whole(edits[0].target, own):
            return edits[0].values(own, self._sources, self._memo)
        tensor = own.clone()
        for place, edit in enumerate(edits):
            part = view(tensor, edit.target)
            changed = any(edit.target.overlaps(earlier.target) for earlier in edits[:place])
            part.copy_(edit.values(part, self._sources, {} if changed else self._memo))
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


def _new_values(component: _Component, weights: Weights, sources: Sources, memo: Memo) -> dict[Slice, torch.Tensor]:
    """The values of all slices of a component after its edits."""
    if len(component) == 1:  # the usual case reads the slice alone, not its whole parameter
        edit = component[0]
        return {edit.target: edit.values(narrow(weights, edit.target), sources, memo)}
    name = component[0].target.parameter  # overlapping slices are of one parameter
    patched = _Patched(component, weights, sources, memo)[name]
    return {edit.target: view(patched, edit.target) for edit in component}


def _targets(components: Iterable[_Component]) -> set[Slice]:
    return {edit.target for component in components for edit in component}


def _each(patch: Patch, weights: Weights) -> Iterator[Edit]:
    """The edits of a patch with those that speak of all weights taken apart."""
    return (one for edit in patch.edits for one in edit.each(weights))


def _components(edits: Iterable[Edit]) -> dict[_Component, None]:
    """The edits in groups whose slices overlap, so that each group can be written and undone without the others."""
    by_parameter: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        by_parameter[edit.target.parameter].append(edit)
    return {group: None for together in by_parameter.values() for group in _overlapping(together)}


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
