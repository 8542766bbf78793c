"""Task arithmetic: the base plus scaled deltas of one or more tuned checkpoints (Ilharco et al. 2023, arXiv 2212.04089)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from cpt_lab.interventions import members as merging
from cpt_lab.interventions.members import OfDeltas, Weights
from cpt_lab.patch import Patch
from cpt_lab.specs import Choices, ModelShape
from cpt_lab.tensor_edits import EVERYTHING, Combine, arithmetic


class TaskArithmeticSettings(BaseModel):
    """`scale` of the delta of tuned, or `scales` of the deltas of any number of checkpoints by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    scale: float | None = None
    scales: Weights | None

    @model_validator(mode="before")
    @classmethod
    def _says_one(cls, data: Any) -> Any:
        advice = "set intervention.scale=0.5 for the delta of tuned, or intervention.scales={tuned:0.5,reference:0.5}"
        merging.check_one_given("task_arithmetic", data, ("scale", "scales"), advice=advice)
        return data


class TaskArithmetic(OfDeltas):
    """base + sum_i scale_i (x_i - base) of all parameters. Scale 0 is the base and scale 1 of one checkpoint is it, bit for bit."""

    SETTINGS = TaskArithmeticSettings
    kind: Literal["task_arithmetic"] = "task_arithmetic"

    @classmethod
    def chosen(cls, settings: TaskArithmeticSettings, choices: Choices) -> TaskArithmetic:
        scales = settings.scales if settings.scales is not None else {"tuned": settings.scale or 0.0}
        return cls(base=merging.whole_checkpoint("base", choices), members=merging.members(scales, choices))

    def settled(self) -> TaskArithmetic | None:
        return None if merging.only_self(tuple(part for part in self.members if part.weight)) else self

    def patch(self, shape: ModelShape) -> Patch:  # noqa: ARG002 (every parameter of any shape)
        return Patch(edits=(Combine(target=EVERYTHING, terms=arithmetic("base", merging.terms(self.members))),))

    def label(self) -> str:
        return "arithmetic-" + "-".join(f"{part.weight:g}{part.label()}" for part in self.members)
