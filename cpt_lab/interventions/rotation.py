"""What ablation and restoration of a rotation share: settings, sources, edits of whole matrices (T 5.2, appendix D)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from cpt_lab.architecture import ATTENTION_ROLES, Slice, is_transposed, roles
from cpt_lab.interventions.matrices import of_role
from cpt_lab.patch import Patch
from cpt_lab.specs import Checkpoint, Choices, Intervention, ModelShape, Spec
from cpt_lab.spectral_edits import Matrix, RotateVectors, located

Side = Literal["in", "out"]
Part = Literal["attention", "mlp"]


class RotationSettings(BaseModel):
    """Which singular vectors of which matrices are exchanged, and where the others come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    side: Side
    part: Part
    source: str


class Rotation(Intervention):
    """Singular vectors of one side of every whole matrix of one part come from `source`; singular values and the other side stay.

    T writes h W, so that U is the side of the input and V that of the output: `side` says which is meant, however W is stored.
    """

    SETTINGS: ClassVar[type[BaseModel]] = RotationSettings
    ANY_DTYPE = True
    NOT_IDENTITY = frozenset({"name"})
    name: str = Field(description="what the patch calls the source")
    source: Checkpoint
    side: Side
    part: Part

    @classmethod
    def chosen(cls, settings: RotationSettings, choices: Choices) -> Rotation:
        return cls(name=settings.source, source=choices.checkpoint(settings.source), **settings.model_dump(exclude={"source"}))

    def needs(self) -> tuple[Spec, ...]:
        return (self.source,)

    def sources(self) -> dict[str, Checkpoint]:
        return {self.name: self.source}

    def patch(self, shape: ModelShape) -> Patch:
        """One edit per matrix."""
        axis: Literal[0, 1] = 0 if (self.side == "out") != is_transposed(shape) else 1
        wanted = [role for role in roles(shape) if (role in ATTENTION_ROLES) == (self.part == "attention")]
        return Patch(edits=tuple(self.rotate(*located(matrix), axis) for role in wanted for matrix in of_role(shape, role)))

    def rotate(self, target: Slice, parts: Matrix, axis: Literal[0, 1]) -> RotateVectors:
        """The edit of one matrix, whose vectors of `axis` are exchanged."""
        raise NotImplementedError(f"{self.kind} rotates nothing")

    def label(self) -> str:
        return f"{self.kind}-{self.side}-{self.part}-by-{self.source.label()}"
