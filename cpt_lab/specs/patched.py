"""Edits of weights as specs: spectra, rankings of heads, interventions, patched checkpoints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, Field, SerializeAsAny, field_validator, model_validator

from cpt_lab.specs.base import Spec, identity
from cpt_lab.specs.checkpoints import Checkpoint, ModelShape

if TYPE_CHECKING:
    from cpt_lab.patch import Patch

Head = tuple[int, int]  # (layer, head)


class Spectra(Spec):
    """Spectral measures of a checkpoint, or of its delta to another one, per head and per matrix."""

    FOLDER = "spectra"
    PRODUCT = "spectra table"
    kind: Literal["spectra"] = "spectra"
    checkpoint: Checkpoint
    against: Checkpoint | None = Field(default=None, description="the base: measures are then those of checkpoint - against")
    measures: tuple[str, ...] = Field(min_length=1)

    @field_validator("measures")
    @classmethod
    def _as_a_set(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(measures)))

    def needs(self) -> tuple[Spec, ...]:
        return (self.checkpoint,) if self.against is None else (self.checkpoint, self.against)

    def label(self) -> str:
        return f"{self.checkpoint.label()}-delta" if self.against is not None else self.checkpoint.label()


class Ranking(Spec):
    """An order of the heads: a criterion, its direction and what the criterion looks at (see `orderings.ranking`)."""

    FOLDER = "rankings"
    PRODUCT = "ranking"
    kind: Literal["ranking"] = "ranking"
    criterion: str
    direction: Literal["ascending", "descending"]
    shape: ModelShape
    spectra: tuple[Spectra, ...] = Field(default=(), description="the tables the criterion reads, in the order it names them")
    roles: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k", "v", "o")
    seed: int | None = Field(default=None, description="of a random order; None for every other criterion")

    def needs(self) -> tuple[Spec, ...]:
        return self.spectra

    def label(self) -> str:
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.criterion}-{self.direction}{seed}"


class Heads(Spec):
    """An explicit set of heads."""

    kind: Literal["heads"] = "heads"
    heads: tuple[Head, ...] = ()

    @field_validator("heads")
    @classmethod
    def _as_a_set(cls, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        return tuple(sorted(set(heads)))

    def label(self) -> str:
        return f"{len(self.heads)}heads"


class TopOf(Spec):
    """The first round(fraction x heads) heads of a ranking."""

    kind: Literal["top_of"] = "top_of"
    ranking: Ranking
    fraction: float = Field(ge=0, le=1)

    def needs(self) -> tuple[Spec, ...]:
        return (self.ranking,)

    @property
    def count(self) -> int:
        """round(f x number of heads), halves up (P eq. 16 does not say: Python would round halves to even)."""
        return math.floor(self.fraction * self.ranking.shape.total_heads + 0.5)

    def label(self) -> str:
        return f"{self.ranking.label()}-{self.fraction:g}"


Selection = Annotated[Heads | TopOf, Field(discriminator="kind")]


class Choices(Protocol):
    """What the configuration of an intervention may refer to."""

    def checkpoint(self, name: Literal["base", "tuned", "reference"]) -> Checkpoint:
        """One of the study's checkpoints."""

    def ranking(self, direction: str) -> Ranking:
        """The chosen criterion's order of the heads."""


class Intervention(Spec):
    """One change of weights as data; each kind is a class in `cpt_lab/interventions`."""

    SETTINGS: ClassVar[type[BaseModel]]  # what conf/intervention/<kind>.yaml may say, beside its name
    kind: str

    @classmethod
    def chosen(cls, settings: Any, choices: Choices) -> Self:
        """The intervention that these SETTINGS mean; ValueError in one sentence if they mean none."""
        raise NotImplementedError(f"{cls.__name__} cannot be configured")

    def settled(self) -> Intervention | None:
        """The same change in its simplest form: explicit units where no ranking is needed to know them, None if it changes nothing."""
        return self

    def with_ranking(self, order: tuple[Head, ...]) -> Intervention:
        """The same change with its ranking replaced by the units that this order selects."""
        raise NotImplementedError(f"{self.kind} has no ranking")

    def rankings(self) -> tuple[Ranking, ...]:
        """The rankings that must be known before the change is."""
        return ()

    def sources(self) -> dict[str, Checkpoint]:
        """The checkpoints that weights are taken from, by the names its patch uses."""
        return {}

    def patch(self, shape: ModelShape) -> Patch:
        """The edits, once no ranking is pending."""
        raise NotImplementedError(f"{self.kind} has no patch")


class Patched(Spec):
    """A checkpoint with interventions applied in order; its product is a checkpoint folder."""

    FOLDER = "materialized"
    PRODUCT = "patched checkpoint"
    kind: Literal["patched"] = "patched"
    tuned: Checkpoint
    interventions: tuple[SerializeAsAny[Intervention], ...] = Field(min_length=1)

    @field_validator("interventions", mode="before")
    @classmethod
    def _by_kind(cls, values: Any) -> Any:
        from cpt_lab.interventions import parse  # they build on this module

        return tuple(parse(value) if isinstance(value, dict) else value for value in values)

    @model_validator(mode="after")
    def _sources_have_one_meaning(self) -> Patched:
        known: dict[str, Checkpoint] = {}
        for change in self.interventions:
            for name, source in change.sources().items():
                if identity(known.setdefault(name, source)) != identity(source):
                    raise ValueError(f"the interventions call two checkpoints by the name {name}: give each a name of its own")
        return self

    def needs(self) -> tuple[Spec, ...]:
        sources = (source for change in self.interventions for source in change.sources().values())
        rankings = (ranking for change in self.interventions for ranking in change.rankings())
        return (self.tuned, *sources, *rankings)

    @property
    def shape(self) -> ModelShape:
        return self.tuned.shape

    def label(self) -> str:
        return "-".join(change.label() for change in self.interventions)
