"""The checkpoints that a merge takes its weights from, and how much of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from cpt_lab.specs import Checkpoint, Choices, Intervention, Spec, digest
from cpt_lab.tensor_edits import SELF

Weights = Annotated[dict[str, float], Field(min_length=1)]  # by the names of checkpoints


class Member(Spec):
    """One checkpoint of a merge; without a checkpoint it is the one that is being patched."""

    NOT_IDENTITY = frozenset({"name"})
    kind: Literal["member"] = "member"
    name: str
    checkpoint: Checkpoint | None = None
    weight: float

    @property
    def source(self) -> str:
        """The name that patches use."""
        return self.name if self.checkpoint is not None else SELF

    def label(self) -> str:
        return self.checkpoint.label() if self.checkpoint is not None else "tuned"


class OfDeltas(Intervention):
    """A change made of the deltas of several checkpoints to one base."""

    base: Checkpoint
    members: tuple[Member, ...] = Field(min_length=1)

    def needs(self) -> tuple[Spec, ...]:
        return tuple(self.sources().values())

    def sources(self) -> dict[str, Checkpoint]:
        return {"base": self.base, **sources(self.members)}


def check_one_given(intervention: str, data: Mapping[str, Any], names: tuple[str, str], *, advice: str) -> None:
    """ValueError, with what to set, unless one of two settings is given and not both: for one checkpoint, or for several by name."""
    given = [name for name in names if data.get(name) is not None]
    if len(given) != 1:
        raise ValueError(f"intervention={intervention} got {' and '.join(given) or f'no {names[0]}'}: {advice}")


def members(weights: Mapping[str, float], choices: Choices) -> tuple[Member, ...]:
    """A member per name, "tuned" for the checkpoint that is patched. Their order depends on the checkpoints alone: one set, one key."""
    found = (
        Member(name=name, checkpoint=None if name == "tuned" else whole_checkpoint(name, choices), weight=weight)
        for name, weight in weights.items()
    )
    return tuple(sorted(found, key=lambda part: "" if part.checkpoint is None else digest(part.checkpoint)))


def whole_checkpoint(name: str, choices: Choices) -> Checkpoint:
    """The checkpoint of this name; ValueError if only one of it and tuned has an output matrix beside the embedding."""
    tuned, found = choices.checkpoint("tuned"), choices.checkpoint(name)
    if tuned.shape.tied_embeddings != found.shape.tied_embeddings:
        free, tied = (name, "tuned") if tuned.shape.tied_embeddings else ("tuned", name)
        raise ValueError(f"{free} has an output matrix and in {tied} it is the embedding: give checkpoints that are alike in this")
    return found


def sources(parts: tuple[Member, ...]) -> dict[str, Checkpoint]:
    """The checkpoints of a merge by the names that its patch uses."""
    return {part.source: part.checkpoint for part in parts if part.checkpoint is not None}


def only_self(parts: tuple[Member, ...]) -> bool:
    """Whether the merge is the whole of the patched checkpoint and of no other."""
    return [(part.checkpoint, part.weight) for part in parts] == [(None, 1)]


def terms(parts: tuple[Member, ...]) -> tuple[tuple[str, float], ...]:
    """(source, weight) of every member."""
    return tuple((part.source, part.weight) for part in parts)
