"""How the singular vectors of two checkpoints turned, matrix by matrix, as a spec: small pictures of large matrices."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cpt_lab.families import ROLES, Role, roles_of
from cpt_lab.names import unknown
from cpt_lab.specs.base import Spec
from cpt_lab.specs.checkpoints import Checkpoint


class Rotations(Spec):
    """The similarity, difference and orthogonality matrices of T eq. 5 to 7 of whole matrices of `checkpoint` and `against`.

    Of k x k entries the corner of the first vectors is kept as it is, and all of them as averages over blocks.
    """

    FOLDER = "rotations"
    PRODUCT = "similarity matrices"
    kind: Literal["rotations"] = "rotations"
    checkpoint: Checkpoint
    against: Checkpoint
    layers: tuple[int, ...] | None = Field(default=None, description="None: the first and the last, as T shows")
    roles: tuple[Role, ...] | None = Field(default=None, description="None: all that the model has")
    corner: int = Field(default=25, ge=1, description="first vectors whose entries are kept; T shows 25")
    blocks: int = Field(default=64, ge=1, description="rows and columns that the whole matrix is averaged to")

    @field_validator("roles", mode="before")
    @classmethod
    def _known_and_in_order(cls, roles: Any) -> tuple[Role, ...] | None:
        for role in roles or ():
            if role not in ROLES:
                raise ValueError(unknown("role", str(role), ROLES))
        return None if roles is None else tuple(role for role in ROLES if role in roles)

    @model_validator(mode="after")
    def _fits(self) -> Rotations:
        shape, present = self.checkpoint.shape, roles_of(self.checkpoint.shape.family)
        for layer in self.layers or ():
            if not 0 <= layer < shape.num_layers:
                raise ValueError(f"no layer {layer} in a model of {shape.num_layers}: give numbers from 0 to {shape.num_layers - 1}")
        for role in self.roles or ():
            if role not in present:
                raise ValueError(f"{shape.family} models have no {role}: choose roles from {', '.join(present)}")
        if self.layers == () or self.roles == ():
            raise ValueError("no matrices are asked for: name at least one layer and one role, or leave them null")
        return self

    def needs(self) -> tuple[Spec, ...]:
        return (self.checkpoint, self.against)

    @property
    def shown(self) -> tuple[tuple[int, Role], ...]:
        """The matrices, layer by layer."""
        last = self.checkpoint.shape.num_layers - 1
        layers = self.layers if self.layers is not None else (0, last) if last else (0,)
        roles = self.roles if self.roles is not None else roles_of(self.checkpoint.shape.family)
        return tuple((layer, role) for layer in dict.fromkeys(layers) for role in roles)

    def label(self) -> str:
        return f"{self.checkpoint.label()}-against-{self.against.label()}"
