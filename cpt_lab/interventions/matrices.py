"""Which matrices an intervention of singular values or vectors edits: some roles of all layers, by head or whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from cpt_lab.architecture import ATTENTION_ROLES, ROLES, Role, Slice, group_size, head_matrix, matrix, num_blocks, roles
from cpt_lab.names import unknown
from cpt_lab.specs import ModelShape

ALL = "all"


class RoleSettings(BaseModel):
    """Which roles: `all` that the model has, or a list of some."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    roles: tuple[Role, ...] | None  # None: all

    @field_validator("roles", mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if given == ALL:
            return None
        if not isinstance(given, list | tuple) or not given:
            raise ValueError(f"got {given!r}, allowed are {ALL} and lists of {', '.join(ROLES)}")
        for role in given:
            if role not in ROLES:
                raise ValueError(unknown("role", str(role), ROLES))
        return given

    def of(self, shape: ModelShape) -> tuple[Role, ...]:
        """The roles in their usual order; ValueError if the model lacks one of them."""
        present = roles(shape)
        missing = [role for role in self.roles or () if role not in present]
        if missing:
            raise ValueError(f"{shape.family} models have no {missing[0]}: choose intervention.roles from {', '.join(present)}")
        return tuple(role for role in present if self.roles is None or role in self.roles)


def blocks(shape: ModelShape, wanted: tuple[Role, ...]) -> Iterator[tuple[Slice, ...]]:
    """The matrices of P: each head's block of q, k, v, o (a block of k and v once per key-value head), each whole matrix of the MLP."""
    for layer in range(shape.num_layers):
        for role in wanted:
            if role not in ATTENTION_ROLES:
                yield matrix(shape, layer, role)
                continue
            queries = group_size(shape) if role in ("k", "v") else 1
            yield from ((head_matrix(shape, layer, block * queries, role),) for block in range(num_blocks(shape, role)))


def of_role(shape: ModelShape, role: Role) -> tuple[tuple[Slice, ...], ...]:
    """The whole matrices of a role, layer by layer: the matrices of T."""
    return tuple(matrix(shape, layer, role) for layer in range(shape.num_layers))
