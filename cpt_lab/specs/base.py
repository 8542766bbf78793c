"""What every spec is: a frozen, validated value with an identity and a key."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict

SCHEMA = 1  # raise when the meaning of a stored product changes: every key changes with it
KEY_DIGITS = 16  # 64 bits of SHA-256; the stored spec guards against the rest
LABEL_LENGTH = 60


class Spec(BaseModel):
    """A frozen value with an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset()
    IF_GIVEN: ClassVar[frozenset[str]] = frozenset()  # part of the identity unless None: fields that came later and leave older keys alone
    FOLDER: ClassVar[str] = ""  # where the store keeps its product; empty: it is only ever part of another spec
    PRODUCT: ClassVar[str] = ""  # what one is called in messages

    def needs(self) -> tuple[Spec, ...]:
        """The specs whose products must exist before this one can be built."""
        return ()

    def label(self) -> str:
        """A few readable words; the readable half of the key."""
        return self.FOLDER

    def but(self, **changes: Any) -> Self:
        """The same spec with some fields changed, validated."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def replaced(self, **changes: Any) -> Self:
        """`but` with values that are known to fit: to look at thousands of points again takes seconds."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return cast("Self", type(self).model_construct(**{**fields, **changes}))

    def model_copy(self, **_: Any) -> Self:
        raise TypeError(f"model_copy would copy a cached key: use {type(self).__name__}.but(...)")

    @cached_property
    def _canonical(self) -> str:
        """The text of its own content: thousands of points hold the same checkpoint, which is written out once."""
        return "{" + ",".join(f"{json.dumps(name)}:{_text(getattr(self, name))}" for name in sorted(self._counted)) + "}"

    @property
    def _counted(self) -> list[str]:
        """The fields that the identity is made of."""
        names = (name for name in type(self).model_fields if name not in self.NOT_IDENTITY)
        return [name for name in names if name not in self.IF_GIVEN or getattr(self, name) is not None]

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()

    @cached_property
    def _key(self) -> str:
        label = re.sub(r"[^A-Za-z0-9_.]+", "-", self.label()).strip("-.")[:LABEL_LENGTH].rstrip("-.")
        return f"{label}-{self._digest[:KEY_DIGITS]}"


def identity(value: Any) -> Any:
    """The scientific content of a spec as plain JSON values, numbers normalised by their declared types."""
    if isinstance(value, Spec):
        return {name: identity(getattr(value, name)) for name in value._counted}
    if isinstance(value, dict):
        return {str(name): identity(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [identity(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a spec holds the number {value}, which has no place in a key: give a finite number")
        return value + 0.0  # -0.0 and 0.0 are one value
    return value


def canonical_json(spec: Spec) -> str:
    """The text that is hashed: sorted keys, no blanks, the schema version beside the content."""
    return f'{{"schema":{SCHEMA},"spec":{spec._canonical}}}'


def _text(value: Any) -> str:
    """The canonical JSON of `identity(value)`."""
    if isinstance(value, Spec):
        return value._canonical
    if isinstance(value, tuple | list):
        return _whole(value) or "[" + ",".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        return (
            "{"
            + ",".join(f"{json.dumps(name)}:{_text(item)}" for name, item in sorted((str(name), item) for name, item in value.items()))
            + "}"
        )
    return json.dumps(identity(value))


def _whole(values: Sequence[Any]) -> str | None:
    """The text of integers and words in one go: the units of an edit are thousands. None if there may be something to normalise."""
    try:
        text = json.dumps(values, separators=(",", ":"))
    except TypeError:  # a spec
        return None
    return None if re.search(r"[.{NI]|\de", text) else text


def digest(spec: Spec) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return spec._digest


def key(spec: Spec) -> str:
    """`label-hash`: the name of the spec's folder in the store."""
    return spec._key
