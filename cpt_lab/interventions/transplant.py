"""Transplantation: the singular values of one checkpoint in the singular vectors of another (P C.2, eq. 14)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cpt_lab.architecture import Role
from cpt_lab.interventions.matrices import RoleSettings, blocks
from cpt_lab.patch import Patch
from cpt_lab.specs import Checkpoint, Choices, Intervention, ModelShape, Spec
from cpt_lab.spectral_edits import SingularValues, located


class TransplantSettings(RoleSettings):
    """Whose singular values, and into which roles."""

    source: str


class Transplant(Intervention):
    """U S_source V^T head by head for q, k, v, o and per matrix for the MLP; the vectors U, V and all the rest stay those of tuned."""

    SETTINGS = TransplantSettings
    ANY_DTYPE = True
    NOT_IDENTITY = frozenset({"name"})
    kind: Literal["transplant"] = "transplant"
    name: str = Field(description="what the patch calls the source")
    source: Checkpoint
    roles: tuple[Role, ...] = Field(min_length=1)

    @classmethod
    def chosen(cls, settings: TransplantSettings, choices: Choices) -> Transplant:
        source = choices.checkpoint(settings.source)
        return cls(name=settings.source, source=source, roles=settings.of(source.shape))

    def needs(self) -> tuple[Spec, ...]:
        return (self.source,)

    def sources(self) -> dict[str, Checkpoint]:
        return {self.name: self.source}

    def patch(self, shape: ModelShape) -> Patch:
        """One edit per block; each block of the model in at most one."""
        places = (located(block) for block in blocks(shape, self.roles))
        return Patch(edits=tuple(SingularValues(target=target, parts=parts, source=self.name) for target, parts in places))

    def label(self) -> str:
        return f"transplant-values-of-{self.source.label()}"
