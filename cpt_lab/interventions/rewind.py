"""Head rewind: chosen heads of the tuned model take the weights they had in the base (P 4.4, eq. 16)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from cpt_lab.architecture import Slice, group, group_size, head_slices, role_slices
from cpt_lab.edits import Copy
from cpt_lab.patch import Patch
from cpt_lab.specs import Checkpoint, Choices, Head, Heads, Intervention, Matrices, ModelShape, Ranking, Selection, Spec, TopOf, Unit


class RewindSettings(BaseModel):
    """Which units: a share of a ranking, or an explicit list of heads; and what becomes of shared k and v."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    fraction: float | None = None
    direction: str
    kv: Literal["when_group_complete", "with_first", "never"]
    heads: tuple[Head, ...] | None

    @field_validator("fraction", mode="before")
    @classmethod
    def _is_a_share(cls, fraction: Any) -> Any:
        number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if fraction is not None and not (number and 0 <= fraction <= 1):
            raise ValueError(f"got {fraction!r}, allowed is a share of the heads between 0 and 1")
        return fraction

    @field_validator("heads", mode="before")
    @classmethod
    def _are_pairs(cls, heads: Any) -> Any:
        pairs = isinstance(heads, list | tuple) and all(isinstance(head, list | tuple) and len(head) == 2 for head in heads)
        if heads is not None and not pairs:
            raise ValueError(f"got {heads!r}, allowed is a list of pairs: [[LAYER,HEAD],...]")
        return heads

    @model_validator(mode="after")
    def _says_which(self) -> RewindSettings:
        how = "set intervention.fraction=0.5, or intervention.heads=[[LAYER,HEAD],...]"
        if self.heads is None and self.fraction is None:
            raise ValueError(f"intervention=rewind must know which heads: {how}")
        if self.heads is not None and self.fraction is not None:
            raise ValueError(f"intervention=rewind got both fraction and heads: {how}, and leave the other at null")
        return self


class Rewind(Intervention):
    """The heads in `select` take the base's q, k, v, o slices and q/k-norm segments; matrices all that belongs to their role.

    With grouped-query attention a head's q, o and q-norm segment follow the head; the k and v (and k-norm) that a group shares are rewound
    when all its query heads are in the set (`kv: when_group_complete`), as soon as one of them is (`with_first`), or never. P has
    multi-head attention only, where k and v belong to their head and all three are one.
    """

    SETTINGS = RewindSettings
    kind: Literal["rewind"] = "rewind"
    base: Checkpoint
    select: Selection
    kv: Literal["when_group_complete", "with_first", "never"] = "when_group_complete"

    @classmethod
    def chosen(cls, settings: RewindSettings, choices: Choices) -> Rewind:
        base = choices.checkpoint("base")
        if settings.heads is not None:
            _check_heads(settings.heads, base.shape)
            return cls(base=base, select=Heads(heads=settings.heads), kv=settings.kv)
        assert settings.fraction is not None  # the settings say so
        return cls(base=base, select=TopOf(ranking=choices.ranking(settings.direction), fraction=settings.fraction), kv=settings.kv)

    def needs(self) -> tuple[Spec, ...]:
        return (self.base, *self.rankings())

    def rankings(self) -> tuple[Ranking, ...]:
        return (self.select.ranking,) if isinstance(self.select, TopOf) else ()

    def sources(self) -> dict[str, Checkpoint]:
        return {"base": self.base}

    def with_ranking(self, order: tuple[Unit, ...]) -> Rewind:
        assert isinstance(self.select, TopOf)
        return self.replaced(select=self.select.ranking.first(order, self.select.count))

    def settled(self) -> Rewind | None:
        select = self.select
        if isinstance(select, TopOf) and select.count in (0, len(select.ranking.units)):
            select = select.ranking.first(select.ranking.units, select.count)
        nothing = (isinstance(select, Heads) and not select.heads) or (isinstance(select, Matrices) and not select.matrices)
        if nothing:
            return None
        return self if select is self.select else self.replaced(select=select)

    def patch(self, shape: ModelShape) -> Patch:
        """The copies from "base" that rewind the chosen units; ValueError while a ranking still stands for them."""
        return Patch(edits=tuple(self._edits(shape)))

    def _edits(self, shape: ModelShape) -> Iterator[Copy]:
        select = self.select
        if isinstance(select, TopOf):
            raise ValueError(f"{self.label()} needs the order of its ranking first: rank, then give the units with with_ranking")
        if isinstance(select, Matrices):
            return (_copy(part) for layer, role in select.matrices for part in role_slices(shape, layer, role))
        chosen = frozenset(select.heads)
        return (edit for head in select.heads for edit in _of_head(shape, *head, kv=_takes_kv(self.kv, shape, head, chosen)))

    def label(self) -> str:
        return f"rewind-{self.select.label()}"


@lru_cache(maxsize=1 << 14)  # points of a sweep have most of their edits in common, and a live model sees at once that they are the same
def _of_head(shape: ModelShape, layer: int, head: int, *, kv: bool) -> tuple[Copy, ...]:
    return tuple(_copy(part) for part in head_slices(shape, layer, head, kv=kv))


def _copy(part: Slice) -> Copy:
    return Copy(target=part, source="base")


def _check_heads(heads: tuple[Head, ...], shape: ModelShape) -> None:
    for layer, head in heads:
        if not (0 <= layer < shape.num_layers and 0 <= head < shape.num_heads):
            raise ValueError(
                f"head [{layer}, {head}] does not exist: the model has layers 0 to {shape.num_layers - 1}, heads 0 to {shape.num_heads - 1}"
            )


def _takes_kv(policy: str, shape: ModelShape, head: Head, chosen: frozenset[Head]) -> bool:
    """Whether this head brings the k and v of its group along: at most one head of a group does."""
    layer, index = head
    size = group_size(shape)
    if size == 1:
        return True
    first = group(shape, index) * size
    together = [(layer, other) for other in range(first, first + size) if (layer, other) in chosen]
    enough = {"when_group_complete": len(together) == size, "with_first": True, "never": False}[policy]
    return enough and head == together[0]
