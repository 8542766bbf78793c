"""Patches: interventions as data. Applied to a mapping of weights, or in place to a live model and undone again, with the same bits.

A patch is a tuple of edits in order; an edit gives one slice of one parameter new values (edits.py). A new kind of edit takes its place in
the union `Edit`.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from cpt_lab.architecture import Slice
from cpt_lab.edits import ROOM, Copy, Memo, Sources, is_whole, narrow, view
from cpt_lab.layers import LayerDrop, LiveLayers, Remaining
from cpt_lab.spectral_edits import RotateVectors, SingularValues, TruncateDelta, room_to_keep
from cpt_lab.tensor_edits import EVERYTHING, Combine, Dare, Ties
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
        self._applied: dict[str, _Groups] = {}  # by parameter
        self._touched: set[Slice] = set()  # what may differ from the model's own
        self._fitting: set[tuple[str, str, int]] = set()  # source, parameter, axis of copies that need no look at the model's own values
        self._room = room_to_keep()
        self._memo: Memo = {ROOM: self._room}
        unknown = sorted(set(self._parameters) - set(self._weights))
        if unknown:
            raise ValueError(f"the model has a parameter {unknown[0]} that its checkpoint has not: give the folder it was loaded from")

    def read_from(self, sources: Mapping[str, Path | Weights]) -> None:
        """Let patches from now on read these checkpoints by these names, beside those of before whose names are not among them.

        Where a name comes to mean another checkpoint the model is made its own first. What is remembered of a checkpoint outlasts its name.
        """
        if self._sources.name(sources):
            self.reset()
            self._fitting.clear()
            if self._memo[ROOM] < self._room // 2:
                self._memo = {ROOM: self._room}  # the other checkpoints need the room

    def set(self, patch: Patch) -> None:
        """Make the model the patched one, writing only what differs from the patch now applied. A patch that fails leaves no trace."""
        wanted, before = _by_parameter(patch, self._parameters), self._applied
        kept = {name: groups for name, groups in before.items() if groups.edits == wanted.get(name)}
        new = {name: _Groups(edits) for name, edits in wanted.items() if name not in kept}
        try:
            self._restore({part for name in before.keys() - kept.keys() for part in before[name].left_by(new.get(name))})
            self._write(
                values for name, groups in new.items() for group in groups.beyond(before.get(name)) for values in self._values(group)
            )
            self._layers.set(patch.drop)
        except BaseException:
            self.reset()
            raise
        self.patch, self._applied = patch, kept | new

    def reset(self) -> None:
        """Give every parameter its own bits back, and the model its layers."""
        self._layers.set(None)
        self._restore(self._touched)
        self.patch, self._applied = Patch(), {}

    def _values(self, group: _Group) -> Iterator[tuple[Slice, torch.Tensor]]:
        """The slices of a group and their values after its edits."""
        edit, part = group[0], group[0].target
        if len(group) > 1:
            patched = _Patched(group, self._weights, self._sources, self._memo)[part.parameter]
            yield from ((each.target, view(patched, each.target)) for each in group)
        elif not isinstance(edit, Copy):
            yield part, edit.values(narrow(self._weights, part), self._sources, self._memo)
        elif (fit := (edit.source, part.parameter, part.axis)) in self._fitting:
            yield part, narrow(self._sources[edit.source], part)
        else:
            yield part, edit.values(narrow(self._weights, part), self._sources, self._memo)
            self._fitting.add(fit)

    def _restore(self, slices: Set[Slice]) -> None:
        self._write((part, narrow(self._weights, part)) for part in sorted(slices))
        self._touched -= slices

    def _write(self, new: Iterable[tuple[Slice, torch.Tensor]]) -> None:
        import torch

        with torch.no_grad():
            for part, values in new:
                self._touched.add(part)
                narrow(self._parameters, part).copy_(values)


_Group = tuple[Edit, ...]  # edits of one parameter whose slices overlap, in the order of the patch


class _Groups:
    """The edits of one parameter in groups that share no element, so that each can be written and undone without the others."""

    def __init__(self, edits: list[Edit]) -> None:
        self.edits = edits
        groups = ((edit,) for edit in edits) if _are_apart(edits) else _overlapping(edits)
        self._groups: dict[tuple[int, int], _Group] = {_RANGE(group[0]): group for group in groups}

    def beyond(self, others: _Groups | None) -> list[_Group]:
        """The groups that are not among the others."""
        known = others._groups if others is not None else {}
        return [group for place, group in self._groups.items() if known.get(place) != group]

    def left_by(self, others: _Groups | None) -> set[Slice]:
        """The slices of groups that are not among the others and that these do not write."""
        gone = {edit.target for group in self.beyond(others) for edit in group}
        return gone - {edit.target for group in others.beyond(self) for edit in group} if gone and others is not None else gone


_START, _STOP, _AXIS = (operator.attrgetter(f"target.{name}") for name in ("start", "stop", "axis"))
_RANGE = operator.attrgetter("target.start", "target.stop")


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
    """Source checkpoints by name, opened when first asked for. A name may come to mean another one; those it meant stay open."""

    def __init__(self, sources: Mapping[str, Path | Weights]) -> None:
        self._given = dict(sources)
        self._found: dict[str, Weights] = {}
        self._opened: dict[Path | int, Weights] = {}  # keys of a memo name them by id, so none may go

    def name(self, sources: Mapping[str, Path | Weights]) -> bool:
        """Let these names mean these checkpoints; returns whether one of them meant another before."""
        others = [name for name, given in sources.items() if name in self._given and _key(self._given[name]) != _key(given)]
        self._given.update(sources)
        for name in others:
            self._found.pop(name, None)
        return bool(others)

    def __getitem__(self, name: str) -> Weights:
        if name not in self._found:
            given = self._given[name]
            if _key(given) not in self._opened:
                self._opened[_key(given)] = open_weights(given) if isinstance(given, Path) else given
            self._found[name] = self._opened[_key(given)]
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def _key(given: Path | Weights) -> Path | int:
    return given if isinstance(given, Path) else id(given)


def _by_parameter(patch: Patch, weights: Weights) -> dict[str, list[Edit]]:
    """The edits of a patch by the parameters that they are of."""
    found = _grouped(patch.edits)
    return found if EVERYTHING.parameter not in found else _grouped(_each(patch, weights))


def _grouped(edits: Iterable[Edit]) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        found[edit.target.parameter].append(edit)
    return found


def _each(patch: Patch, weights: Weights) -> Iterator[Edit]:
    """The edits of a patch with those that speak of all weights taken apart."""
    return (one for edit in patch.edits for one in edit.each(weights))


def _are_apart(edits: list[Edit]) -> bool:
    """Whether no two edits of a parameter have an element in common: by each start as many have ended as have begun."""
    if len(edits) == 1:
        return True
    starts, stops = sorted(map(_START, edits)), sorted(map(_STOP, edits))
    return len(set(map(_AXIS, edits))) == 1 and all(map(operator.le, stops, starts[1:]))


def _overlapping(edits: list[Edit]) -> list[_Group]:
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
