"""Model soup: a linear combination of the weights of two or more checkpoints (P 2)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cpt_lab.architecture import ROLES, Role, role_slices, roles
from cpt_lab.interventions import members as merging
from cpt_lab.interventions.members import Member, Weights
from cpt_lab.names import unknown
from cpt_lab.patch import Patch
from cpt_lab.specs import Checkpoint, Choices, Intervention, ModelShape, Spec
from cpt_lab.tensor_edits import EVERYTHING, Combine

CLOSE = 1e-9  # how far a sum of weights may be from 1: 0.1 + 0.2 + 0.7 is not 1 in floating point


class SoupSettings(BaseModel):
    """Which checkpoints, and how much of each: `weight` of one other, or `weights` of any number by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    other: str = Field(alias="with")
    weight: float | None = None
    weights: Weights | None
    roles: dict[str, float | Weights] | None
    allow_any_sum: bool

    @model_validator(mode="before")
    @classmethod
    def _says_one(cls, data: Any) -> Any:
        advice = "set intervention.weight=0.5 for (1 - w) tuned + w other, or intervention.weights={tuned:0.5,reference:0.5}"
        merging.check_one_given("soup", data, ("weight", "weights"), advice=advice)
        return data

    @model_validator(mode="after")
    def _adds_up(self) -> SoupSettings:
        main = {"weight": self.weight} if self.weights is None else {"weights": self.weights}
        for place, share in {**main, **{f"roles.{role}": share for role, share in (self.roles or {}).items()}}.items():
            if isinstance(share, dict):
                self._check_sum(place, share)
            else:
                self._check_share(place, share)
        return self

    def _check_sum(self, place: str, weights: Weights) -> None:
        total = sum(weights.values())
        if not (self.allow_any_sum or abs(total - 1) <= CLOSE):
            raise ValueError(
                f"intervention.{place} of {', '.join(weights)} add up to {total:g}, not to 1: correct them, or set allow_any_sum=true"
            )

    def _check_share(self, place: str, share: float | None) -> None:
        """ValueError unless it mixes two checkpoints; weights by name may go beyond them."""
        assert share is not None  # the settings say so
        if self.other == "tuned":
            raise ValueError("intervention.with is tuned, which would be mixed with itself: choose another checkpoint")
        if not 0 <= share <= 1:
            raise ValueError(
                f"intervention.{place} is {share:g}, allowed is a share of {self.other} between 0 and 1: to go beyond say what both weigh, "
                f"{{tuned:{1 - share:g},{self.other}:{share:g}}}"
            )

    def weights_of(self, share: float | Weights | None) -> Weights:
        """Weights by name: those given, or (1 - w) of tuned and w of the other."""
        assert share is not None
        return share if isinstance(share, dict) else {"tuned": 1 - share, self.other: share}


class RoleWeights(Spec):
    """The weights of the members, in their order, for one role: its matrices, biases and norms."""

    kind: Literal["role_weights"] = "role_weights"
    role: Role
    weights: tuple[float, ...]


class Soup(Intervention):
    """w_1 x_1 + w_2 x_2 + ... of all parameters; `roles` gives what belongs to some roles weights of its own.

    With two members and w_1 = 1 - w_2 it is the soup of P 2. Weights that are 1 and 0 give that endpoint bit for bit.
    """

    SETTINGS = SoupSettings
    kind: Literal["soup"] = "soup"
    members: tuple[Member, ...]
    roles: tuple[RoleWeights, ...] = ()

    @classmethod
    def chosen(cls, settings: SoupSettings, choices: Choices) -> Soup:
        weights = settings.weights_of(settings.weight if settings.weights is None else settings.weights)
        shape = choices.checkpoint("tuned").shape
        of_roles = {_known(role, shape): settings.weights_of(share) for role, share in (settings.roles or {}).items()}
        names = dict.fromkeys([*weights, *(name for one in of_roles.values() for name in one)])
        parts = merging.members({name: weights.get(name, 0) for name in names}, choices)
        return cls(
            members=parts,
            roles=tuple(
                RoleWeights(role=role, weights=tuple(of_roles[role].get(part.name, 0) for part in parts))
                for role in ROLES
                if role in of_roles
            ),
        )

    def needs(self) -> tuple[Spec, ...]:
        return tuple(self.sources().values())

    def sources(self) -> dict[str, Checkpoint]:
        return merging.sources(self.members)

    def settled(self) -> Soup | None:
        """Members that nothing is taken of go; the patched checkpoint alone is no change."""
        mine = tuple(part.weight for part in self.members)
        roles = tuple(row for row in self.roles if row.weights != mine)
        used = [place for place in range(len(mine)) if mine[place] or any(row.weights[place] for row in roles)]
        parts = tuple(self.members[place] for place in used)
        if not roles and merging.only_self(parts):
            return None
        return self.but(members=parts, roles=tuple(row.but(weights=tuple(row.weights[place] for place in used)) for row in roles))

    def patch(self, shape: ModelShape) -> Patch:
        apart: list[Combine] = []
        for row in self.roles:
            terms = tuple((part.source, weight) for part, weight in zip(self.members, row.weights, strict=True))
            slices = (part for layer in range(shape.num_layers) for part in role_slices(shape, layer, row.role))
            apart += [Combine(target=part, terms=terms) for part in slices]
        rest = Combine(target=EVERYTHING, terms=merging.terms(self.members), but=tuple(edit.target for edit in apart))
        return Patch(edits=(*apart, rest))

    def label(self) -> str:
        return "soup-" + "-".join(f"{part.weight:g}{part.label()}" for part in self.members)


def _known(role: str, shape: ModelShape) -> Role:
    for known in roles(shape):
        if role == known:
            return known
    raise ValueError(unknown(f"role of {shape.family}", role, roles(shape)))
