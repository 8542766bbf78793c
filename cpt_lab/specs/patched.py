"""Edits of weights as specs: interventions and patched checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, Field, SerializeAsAny, field_validator, model_validator

from cpt_lab.specs.base import Spec, canonical_json
from cpt_lab.specs.checkpoints import (
    Checkpoint,
    FolderCheckpoint,
    HubCheckpoint,
    Intermediate,
    ModelShape,
    OlmoCoreCheckpoint,
    TrainedCheckpoint,
)
from cpt_lab.specs.rankings import Ranking, Unit

if TYPE_CHECKING:
    from cpt_lab.patch import Patch


class Choices(Protocol):
    """What the configuration of an intervention may refer to."""

    def checkpoint(self, name: str) -> Checkpoint:
        """One of the study's checkpoints: base, tuned, reference, or one of the configuration's `others`."""

    def ranking(self, direction: str) -> Ranking:
        """The chosen criterion's order of the units."""


class Intervention(Spec):
    """One change of weights as data; each kind is a class in `cpt_lab/interventions`."""

    SETTINGS: ClassVar[type[BaseModel]]  # what conf/intervention/<kind>.yaml may say, beside its name
    ANY_DTYPE: ClassVar[bool] = False  # whether sources may be stored in another dtype than the checkpoint that is changed
    kind: str

    @classmethod
    def chosen(cls, settings: Any, choices: Choices) -> Self:
        """The intervention that these SETTINGS mean; ValueError in one sentence if they mean none."""
        raise NotImplementedError(f"{cls.__name__} cannot be configured")

    def settled(self) -> Intervention | None:
        """The same change in its simplest form: explicit units where no ranking is needed to know them, None if it changes nothing."""
        return self

    def with_ranking(self, order: tuple[Unit, ...]) -> Intervention:
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
                if canonical_json(known.setdefault(name, source)) != canonical_json(source):
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


Weights = Annotated[
    HubCheckpoint | FolderCheckpoint | TrainedCheckpoint | OlmoCoreCheckpoint | Intermediate | Patched, Field(discriminator="kind")
]


def loaded(checkpoint: Checkpoint | Patched) -> Checkpoint:
    """The checkpoint that a worker loads, and edits where there is something to edit."""
    return checkpoint.tuned if isinstance(checkpoint, Patched) else checkpoint


def weights_of(checkpoint: Checkpoint | Patched) -> tuple[Spec, ...]:
    """What must be there before a checkpoint can be in memory: of a patched one what it is made of, not its copy on disk."""
    return checkpoint.needs() if isinstance(checkpoint, Patched) else (checkpoint,)
