"""What every spec is: a frozen, validated value with an identity and a key."""

from __future__ import annotations

import hashlib
import json
import math
import re
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

SCHEMA = 1  # raise when the meaning of a stored product changes: every key changes with it
KEY_DIGITS = 16  # 64 bits of SHA-256; the stored spec guards against the rest
LABEL_LENGTH = 60


class Spec(BaseModel):
    """A frozen value with an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset()
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

    def model_copy(self, **_: Any) -> Self:
        raise TypeError(f"model_copy would copy a cached key: use {type(self).__name__}.but(...)")

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()


def identity(value: Any) -> Any:
    """The scientific content of a spec as plain JSON values, numbers normalised by their declared types."""
    if isinstance(value, Spec):
        fields = (name for name in type(value).model_fields if name not in value.NOT_IDENTITY)
        return {name: identity(getattr(value, name)) for name in fields}
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
    content = {"schema": SCHEMA, "spec": identity(spec)}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(spec: Spec) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return spec._digest


def key(spec: Spec) -> str:
    """`label-hash`: the name of the spec's folder in the store."""
    label = re.sub(r"[^A-Za-z0-9_.]+", "-", spec.label()).strip("-.")[:LABEL_LENGTH].rstrip("-.")
    return f"{label}-{digest(spec)[:KEY_DIGITS]}"
