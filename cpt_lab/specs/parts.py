"""Specs as JSON with their equal parts written once: thousands of points hold the same checkpoints, rankings and protocol.

A part stands in a list before whatever holds it, and where it belongs there is `{"part": place in the list}` instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cpt_lab.specs.base import Spec
from cpt_lab.specs.graph import KINDS, parse
from cpt_lab.specs.patched import Patched

PART = "part"


class Parts:
    """The parts of the specs that were written so far."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}
        self._of: dict[int, tuple[Spec, int]] = {}  # by identity: specs that were read share their parts; kept, for ids are used again

    def write(self, spec: Spec) -> dict[str, Any]:
        """The spec as JSON values; its parts come to `written`, unless they are there."""
        return {name: self._value(getattr(spec, name)) for name in type(spec).model_fields}

    def _value(self, value: Any) -> Any:
        if isinstance(value, Spec):
            shared = value.FOLDER and not isinstance(value, Patched)  # which hardly two points have in common
            return {PART: self._place(value)} if shared else self.write(value)
        if isinstance(value, tuple) and value and isinstance(value[0], Spec):
            return [self._value(item) for item in value]
        return value  # plain numbers, words, and tuples of them

    def _place(self, spec: Spec) -> int:
        if id(spec) not in self._of:
            text = spec.model_dump_json()  # all of it: what is no part of a key, a path for one, may differ
            if text not in self._places:
                data = self.write(spec)
                self.written.append(data)
                self._places[text] = len(self.written) - 1
            self._of[id(spec)] = (spec, self._places[text])
        return self._of[id(spec)][1]


def read_parts(written: Iterable[dict[str, Any]]) -> list[Spec]:
    """The specs of a list of parts; ValueError if this version does not know one's kind."""
    parts: list[Spec] = []
    for data in written:
        parts.append(from_parts(data, parts))
    return parts


def from_parts(data: dict[str, Any], parts: Sequence[Spec]) -> Spec:
    """The spec that `Parts.write` wrote, holding these very parts; ValueError if this version does not know its kind."""
    return parse({name: _filled(value, parts) for name, value in data.items()})


def _filled(value: Any, parts: Sequence[Spec]) -> Any:
    if isinstance(value, list):
        return [_filled(item, parts) for item in value] if value and isinstance(value[0], dict) else value
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and PART in value:
        return parts[value[PART]]
    inside = {name: _filled(item, parts) for name, item in value.items()}
    return parse(inside) if inside.get("kind") in KINDS else inside
