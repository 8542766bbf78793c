"""Truncation: of what tuning changed in a matrix only the largest singular values are kept (P 4.5, C.4, eq. 19)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from cpt_lab.architecture import Role
from cpt_lab.interventions.matrices import RoleSettings, blocks
from cpt_lab.patch import Patch
from cpt_lab.specs import Checkpoint, Choices, Intervention, ModelShape, Spec
from cpt_lab.spectral_edits import TruncateDelta


class TruncateSettings(RoleSettings):
    """How much of each delta is kept, and of which roles."""

    percent: int

    @field_validator("percent", mode="before")
    @classmethod
    def _is_a_percentage(cls, percent: Any) -> Any:
        whole = isinstance(percent, int) and not isinstance(percent, bool)
        if not (whole and 0 <= percent <= 100):
            raise ValueError(f"got {percent!r}, allowed is a whole percentage of the singular values to keep, 0 to 100")
        return percent


class Truncate(Intervention):
    """Base plus the top k = floor(percent x r / 100) singular values of tuned - base, per head (q, k, v, o) and per MLP matrix.

    r is the smaller side of the block. Everything that belongs to no such matrix, and the roles not named, stays tuned; with grouped-query
    attention a block of k or v is that of a key-value head. After another intervention it truncates what that one left of the delta.
    """

    SETTINGS = TruncateSettings
    kind: Literal["truncate"] = "truncate"
    base: Checkpoint
    percent: int = Field(ge=0, le=100)
    roles: tuple[Role, ...] = Field(min_length=1)

    @classmethod
    def chosen(cls, settings: TruncateSettings, choices: Choices) -> Truncate:
        base = choices.checkpoint("base")
        return cls(base=base, percent=settings.percent, roles=settings.of(base.shape))

    def needs(self) -> tuple[Spec, ...]:
        return (self.base,)

    def sources(self) -> dict[str, Checkpoint]:
        return {"base": self.base}

    def settled(self) -> Truncate | None:
        return None if self.percent == 100 else self

    def patch(self, shape: ModelShape) -> Patch:
        """One edit per block; each block of the model in at most one."""
        return Patch(
            edits=tuple(TruncateDelta(target=block, source="base", percent=self.percent) for (block,) in blocks(shape, self.roles))
        )

    def label(self) -> str:
        return f"truncate-{self.percent}"
