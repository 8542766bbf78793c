"""Scaled transplantation: a post-trained model with alpha' times the singular values of its base (T eq. 9 and 14, table 4)."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cpt_lab.architecture import Role
from cpt_lab.interventions.matrices import RoleSettings, of_role
from cpt_lab.names import unknown
from cpt_lab.patch import Patch
from cpt_lab.specs import Checkpoint, Choices, HubCheckpoint, Intervention, ModelShape, Spec
from cpt_lab.spectral_edits import MeasuredScale, SingularValues, located

# T table 4, by the last part of the post-trained model's hub id (T table 9): alpha' of W_O and of all other roles.
TABLE: dict[str, tuple[float, float]] = {
    "Qwen2.5-Math-1.5B-Instruct": (0.9, 0.9),
    "DeepSeek-R1-Distill-Qwen-1.5B": (1.4, 1.0),
    "Qwen2.5-Math-7B-Instruct": (0.9, 0.9),
    "DeepSeek-R1-Distill-Qwen-7B": (1.4, 1.0),
    "Llama-3.1-8B-Instruct": (1.0, 1.0),
    "DeepSeek-R1-Distill-Llama-8B": (1.4, 1.0),
    "Qwen2.5-14B-Instruct": (1.0, 1.0),
    "DeepSeek-R1-Distill-Qwen-14B": (1.4, 1.0),
}
HOW_TO_GIVE = "set intervention.alpha=measured, or one number per role as in 'intervention.alpha={q: 0.9, k: 0.9, ...}'"


class ScaleTransplantSettings(RoleSettings):
    """alpha' of each role: given, from the table, or measured."""

    alpha: Literal["table", "measured"] | dict[str, float]

    @field_validator("alpha", mode="before")
    @classmethod
    def _are_scales(cls, alpha: Any) -> Any:
        if alpha in ("table", "measured"):
            return alpha
        if not isinstance(alpha, dict):
            raise ValueError(f"got {alpha!r}, allowed are table, measured and one number per role: {HOW_TO_GIVE}")
        for role, scale in alpha.items():
            number = isinstance(scale, int | float) and not isinstance(scale, bool)
            if not (number and math.isfinite(scale) and scale > 0):
                raise ValueError(f"got {scale!r} for {role}, allowed is a number above 0")
        return alpha


class ScaleTransplant(Intervention):
    """U diag(alpha' s_base) V^T for the whole matrix of every role in every layer; the vectors U, V and all the rest stay those of tuned.

    A measured alpha' of a role is the mean of s_tuned,i / s_base,i over the top 90 % of the singular values of all layers, rounded to 0.1,
    always of the tuned checkpoint itself, also after another intervention.
    """

    SETTINGS = ScaleTransplantSettings
    ANY_DTYPE = True
    kind: Literal["scale_transplant"] = "scale_transplant"
    base: Checkpoint
    roles: tuple[Role, ...] = Field(min_length=1)
    alpha: tuple[float, ...] | None = Field(description="one per role; None: measured on `tuned`")
    tuned: Checkpoint | None = None

    @model_validator(mode="after")
    def _each_role_has_its_own(self) -> ScaleTransplant:
        if self.alpha is None and self.tuned is None:
            raise ValueError("alpha can be measured only with the tuned checkpoint: give tuned, or alpha for each role")
        if self.alpha is not None and len(self.alpha) != len(self.roles):
            raise ValueError(f"got {len(self.alpha)} values of alpha for {len(self.roles)} roles: give one for each")
        return self

    @classmethod
    def chosen(cls, settings: ScaleTransplantSettings, choices: Choices) -> ScaleTransplant:
        base, tuned = choices.checkpoint("base"), choices.checkpoint("tuned")
        roles = settings.of(base.shape)
        if settings.alpha == "measured":
            return cls(base=base, roles=roles, alpha=None, tuned=tuned)
        given = settings.alpha if isinstance(settings.alpha, dict) else _tabulated(tuned, roles)
        return cls(base=base, roles=roles, alpha=_in_order(given, roles))

    def needs(self) -> tuple[Spec, ...]:
        return tuple(self.sources().values())

    def sources(self) -> dict[str, Checkpoint]:
        return {"base": self.base} if self.tuned is None else {"base": self.base, "tuned": self.tuned}

    def patch(self, shape: ModelShape) -> Patch:
        """One edit per matrix."""
        edits = []
        for index, role in enumerate(self.roles):
            matrices = of_role(shape, role)
            scale = MeasuredScale(post="tuned", matrices=matrices) if self.alpha is None else self.alpha[index]
            for target, parts in map(located, matrices):
                edits.append(SingularValues(target=target, parts=parts, source="base", scale=scale))
        return Patch(edits=tuple(edits))

    def label(self) -> str:
        scales = ("measured",) if self.alpha is None else tuple(dict.fromkeys(f"{scale:g}" for scale in self.alpha))
        return "-".join(("scale_transplant", *scales))


def _tabulated(tuned: Checkpoint, roles: tuple[Role, ...]) -> dict[str, float]:
    name = tuned.id.split("/")[-1] if isinstance(tuned, HubCheckpoint) else tuned.label()
    if name not in TABLE:
        raise ValueError(f"the table of alpha is for the models of its paper, {unknown('model', name, TABLE)}: {HOW_TO_GIVE}")
    of_output, of_others = TABLE[name]
    return {role: of_output if role == "o" else of_others for role in roles}


def _in_order(given: dict[str, float], roles: tuple[Role, ...]) -> tuple[float, ...]:
    """One scale per role; ValueError for a role without, and for a scale without its role."""
    for role in given:
        if role not in roles:
            raise ValueError(unknown("role in intervention.alpha", role, roles))
    missing = [role for role in roles if role not in given]
    if missing:
        raise ValueError(
            f"intervention.alpha has no value for {', '.join(missing)}: give one for every edited role, or name fewer in intervention.roles"
        )
    return tuple(given[role] for role in roles)
