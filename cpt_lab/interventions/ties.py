"""TIES: several deltas are trimmed, agree on a sign per element, and are averaged (Yadav et al. 2023, arXiv 2306.01708)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cpt_lab.interventions import members as merging
from cpt_lab.interventions.members import OfDeltas
from cpt_lab.patch import Patch
from cpt_lab.specs import Choices, ModelShape
from cpt_lab.tensor_edits import EVERYTHING
from cpt_lab.tensor_edits import Ties as TiesEdit


class TiesSettings(BaseModel):
    """The checkpoints by name, the share of each delta that stays, and the scale of the merged delta."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    models: tuple[str, ...] = Field(min_length=1)
    keep: float = Field(gt=0, le=1)
    scale: float

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError(f"got {', '.join(models)}: name every checkpoint once")
        return models


class Ties(OfDeltas):
    """base + scale x (trimmed deltas, elected signs, mean of those that agree), each parameter by itself: see the edit of this name."""

    SETTINGS = TiesSettings
    kind: Literal["ties"] = "ties"
    keep: float = Field(gt=0, le=1)
    scale: float = 1.0

    @classmethod
    def chosen(cls, settings: TiesSettings, choices: Choices) -> Ties:
        parts = merging.members(dict.fromkeys(settings.models, 1.0), choices)
        return cls(base=merging.whole_checkpoint("base", choices), members=parts, keep=settings.keep, scale=settings.scale)

    def settled(self) -> Ties | None:
        return None if merging.only_self(self.members) and self.keep == self.scale == 1 else self

    def patch(self, shape: ModelShape) -> Patch:  # noqa: ARG002 (every parameter of any shape)
        models = tuple(part.source for part in self.members)
        return Patch(edits=(TiesEdit(target=EVERYTHING, base="base", models=models, keep=self.keep, scale=self.scale),))

    def label(self) -> str:
        return f"ties-{self.keep:g}-" + "-".join(part.label() for part in self.members)
