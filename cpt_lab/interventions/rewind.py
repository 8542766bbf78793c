"""Head rewind: chosen heads of the tuned model take the weights they had in the base (P 4.4, eq. 16)."""

from __future__ import annotations

from typing import Literal

from cpt_lab.architecture import group, group_size, head_slices
from cpt_lab.patch import Copy, Patch
from cpt_lab.specs import Checkpoint, Head, Heads, Intervention, ModelShape, Ranking, Selection, Spec, TopOf


class Rewind(Intervention):
    """The heads in `select` take the base's q, k, v, o slices and q/k-norm segments.

    With grouped-query attention a head's q, o and q-norm segment follow the head; the k and v (and k-norm) that a group shares are rewound
    when all its query heads are in the set (`kv: when_group_complete`), as soon as one of them is (`with_first`), or never. P has
    multi-head attention only, where k and v belong to their head and all three are one.
    """

    kind: Literal["rewind"] = "rewind"
    base: Checkpoint
    select: Selection
    kv: Literal["when_group_complete", "with_first", "never"] = "when_group_complete"

    def needs(self) -> tuple[Spec, ...]:
        return (self.base, *self.rankings())

    def rankings(self) -> tuple[Ranking, ...]:
        return (self.select.ranking,) if isinstance(self.select, TopOf) else ()

    def sources(self) -> dict[str, Checkpoint]:
        return {"base": self.base}

    def with_ranking(self, order: tuple[Head, ...]) -> Rewind:
        assert isinstance(self.select, TopOf)
        return self.but(select=Heads(heads=order[: self.select.count]))

    def settled(self) -> Rewind | None:
        select = self.select
        if isinstance(select, TopOf) and select.count in (0, select.ranking.shape.total_heads):
            shape = select.ranking.shape
            heads = [(layer, head) for layer in range(shape.num_layers) for head in range(shape.num_heads)]
            select = Heads(heads=tuple(heads[: select.count]))
        if isinstance(select, Heads) and not select.heads:
            return None
        return self.but(select=select)

    def patch(self, shape: ModelShape) -> Patch:
        """The copies from "base" that rewind the chosen heads; ValueError while a ranking still stands for them."""
        if not isinstance(self.select, Heads):
            raise ValueError(f"{self.label()} needs the order of its ranking first: rank, then give the heads with with_ranking")
        chosen = frozenset(self.select.heads)
        slices = (part for head in self.select.heads for part in head_slices(shape, *head, kv=_takes_kv(self.kv, shape, head, chosen)))
        return Patch(edits=tuple(Copy(target=part, source="base") for part in slices))

    def label(self) -> str:
        return f"rewind-{self.select.label()}"


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
