"""DARE: most of a delta is dropped at random, the rest rescaled (Yu et al. 2024, arXiv 2311.03099)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cpt_lab.interventions import members as merging
from cpt_lab.interventions.members import OfDeltas, Weights
from cpt_lab.patch import Patch
from cpt_lab.specs import Choices, ModelShape
from cpt_lab.tensor_edits import EVERYTHING
from cpt_lab.tensor_edits import Dare as DareEdit


class DareSettings(BaseModel):
    """The share that is dropped, the seed of the masks, and the scales of the deltas by name: that of tuned alone if none are given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    drop: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)
    scales: Weights | None


class Dare(OfDeltas):
    """base + sum_i scale_i m_i (x_i - base) / (1 - drop) of all parameters, elements of the masks m_i being 0 with probability `drop`."""

    SETTINGS = DareSettings
    kind: Literal["dare"] = "dare"
    drop: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)

    @classmethod
    def chosen(cls, settings: DareSettings, choices: Choices) -> Dare:
        scales = settings.scales if settings.scales is not None else {"tuned": 1.0}
        parts = merging.members(scales, choices)
        return cls(base=merging.whole_checkpoint("base", choices), members=parts, drop=settings.drop, seed=settings.seed)

    def settled(self) -> Dare | None:
        """No change if nothing is dropped of the patched checkpoint alone; without drops the seed is one for all."""
        if self.drop:
            return self
        return None if merging.only_self(self.members) else self.but(seed=0)

    def patch(self, shape: ModelShape) -> Patch:  # noqa: ARG002 (every parameter of any shape)
        terms = merging.terms(self.members)
        return Patch(edits=(DareEdit(target=EVERYTHING, base="base", terms=terms, drop=self.drop, seed=self.seed),))

    def label(self) -> str:
        return f"dare-{self.drop:g}-seed{self.seed}-" + "-".join(part.label() for part in self.members)
