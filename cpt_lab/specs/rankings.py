"""Orders of a model's units as specs: the tables and evaluations that a criterion reads, rankings, and what is taken from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import compress
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from cpt_lab.families import Role
from cpt_lab.specs.base import Spec
from cpt_lab.specs.checkpoints import Checkpoint, ModelShape
from cpt_lab.specs.protocols import Protocol
from cpt_lab.specs.spectra import Spectra

if TYPE_CHECKING:
    from cpt_lab.specs.patched import Intervention

Head = tuple[int, int]  # (layer, head)
Matrix = tuple[int, Role]  # (layer, role)
Unit = tuple[int, int | str]  # (layer, head), (layer, role), or (layer, WHOLE_LAYER)
UnitKind = Literal["head", "matrix", "layer"]
WHOLE_LAYER = "all"


class Probe(Spec):
    """What a ranking measures every unit by: the score of the tuned checkpoint with that unit alone rewound to the base, or left out."""

    kind: Literal["probe"] = "probe"
    tuned: Checkpoint
    base: Checkpoint | None = Field(default=None, description="None: the unit, a layer, is left out instead")
    protocol: Protocol
    metric: str | None = Field(default=None, description="`<task>/<metric>`; None: the protocol's primary one")
    kv: Literal["when_group_complete", "with_first", "never"] = "when_group_complete"


class ScoresFile(Spec):
    """Scores, or an order, that somebody else made."""

    NOT_IDENTITY = frozenset({"path"})
    kind: Literal["scores_file"] = "scores_file"
    path: str
    contents_digest: str


class Ranking(Spec):
    """An order of the units: a criterion, its direction and what the criterion looks at (see `orderings.ranking`)."""

    FOLDER = "rankings"
    PRODUCT = "ranking"
    kind: Literal["ranking"] = "ranking"
    criterion: str
    direction: Literal["ascending", "descending"]
    shape: ModelShape
    unit: UnitKind = "head"
    roles: tuple[Role, ...] = ("q", "k", "v", "o")
    seed: int | None = Field(default=None, description="of a random order; None for every other criterion")
    column: str | None = Field(default=None, description="the spectral measure, for a criterion that is one of any name")
    spectra: tuple[Spectra, ...] = Field(default=(), description="the tables the criterion reads, in the order it names them")
    probe: Probe | None = Field(default=None, description="of an order by evaluations, greedy or by ablation")
    file: ScoresFile | None = Field(default=None, description="of an order that comes from a file")

    def needs(self) -> tuple[Spec, ...]:
        """The tables; for a probed order the evaluation of the tuned checkpoint and one for every unit, in the order of `units`."""
        if self.probe is None:
            return self.spectra
        if self.probe.base is None:
            return _single_drops(self.probe, self.shape.num_layers)
        return _single_rewinds(self.probe, tuple(self.selected((unit,)) for unit in self.units))

    @property
    def parts(self) -> tuple[int | str, ...]:
        """What a layer consists of: its heads, its matrices by role, or itself."""
        parts: dict[str, tuple[int | str, ...]] = {"head": tuple(range(self.shape.num_heads)), "matrix": self.roles}
        return parts.get(self.unit, (WHOLE_LAYER,))

    @cached_property  # asked for by every point that rewinds a share of it
    def units(self) -> tuple[Unit, ...]:
        """All units, layer by layer."""
        return tuple((layer, part) for layer in range(self.shape.num_layers) for part in self.parts)

    def selected(self, units: tuple[Unit, ...]) -> Heads | Matrices:
        """These units as explicit heads or matrices; a layer is all its heads."""
        if self.unit == "matrix":
            return Matrices.model_validate({"matrices": units})
        if self.unit == "head":
            return _first_heads(units, len(units))
        heads = range(self.shape.num_heads)
        return Heads(heads=tuple((layer, head) for layer, part in units for head in (heads if part == WHOLE_LAYER else (int(part),))))

    def first(self, order: tuple[Unit, ...], count: int) -> Heads | Matrices:
        """The first `count` units of an order of them as explicit heads or matrices."""
        return _first_heads(order, count) if self.unit == "head" else self.selected(order[:count])

    def label(self) -> str:
        plural = {"head": "", "matrix": "matrices", "layer": "layers"}
        words = [self.criterion, self.column or "", plural[self.unit], self.direction]
        return "-".join([*filter(None, words), *([] if self.seed is None else [f"seed{self.seed}"])])


class Correlation(Spec):
    """How two rankings of the same units agree: the rank correlation of their scores."""

    FOLDER = "correlations"
    PRODUCT = "correlation"
    kind: Literal["correlation"] = "correlation"
    one: Ranking
    other: Ranking

    @model_validator(mode="after")
    def _of_the_same_units(self) -> Correlation:
        if self.one.units != self.other.units:
            raise ValueError(
                f"{self.one.label()} ranks {len(self.one.units)} units ({self.one.unit}) and {self.other.label()} {len(self.other.units)} "
                f"({self.other.unit}): give both the same unit"
            )
        return self

    def needs(self) -> tuple[Spec, ...]:
        return (self.one, self.other)

    def label(self) -> str:
        return f"{self.one.label()}-and-{self.other.label()}"


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


class Matrices(Spec):
    """An explicit set of matrices, with the biases and norms of their roles."""

    kind: Literal["matrices"] = "matrices"
    matrices: tuple[Matrix, ...] = ()

    @field_validator("matrices")
    @classmethod
    def _as_a_set(cls, matrices: tuple[Matrix, ...]) -> tuple[Matrix, ...]:
        return tuple(sorted(set(matrices)))

    def label(self) -> str:
        return f"{len(self.matrices)}matrices"


class TopOf(Spec):
    """The first round(fraction x units) units of a ranking."""

    kind: Literal["top_of"] = "top_of"
    ranking: Ranking
    fraction: float = Field(ge=0, le=1)

    def needs(self) -> tuple[Spec, ...]:
        return (self.ranking,)

    @property
    def count(self) -> int:
        """round(f x number of units), halves up (P eq. 16 does not say: Python would round halves to even)."""
        return math.floor(self.fraction * len(self.ranking.units) + 0.5)

    def label(self) -> str:
        return f"{self.ranking.label()}-{self.fraction:g}"


Selection = Annotated[Heads | Matrices | TopOf, Field(discriminator="kind")]


@lru_cache(maxsize=1 << 13)  # the points of a study are settled several times
def _first_heads(order: tuple[Unit, ...], count: int) -> Heads:
    """Heads that come from a ranking's own order, and so need no validation, with their text, which a key is made of.

    Thousands of points take each another share of the same thousand heads: those are sorted and written out once.
    """
    heads, texts, places = _sorted_heads(order)
    chosen = [place < count for place in places]
    made = Heads.model_construct(heads=tuple(compress(heads, chosen)))
    made.__dict__["_canonical"] = f'{{"heads":[{",".join(compress(texts, chosen))}],"kind":"heads"}}'
    return made


@lru_cache(maxsize=1 << 10)
def _sorted_heads(order: tuple[Unit, ...]) -> tuple[list[Head], list[str], list[int]]:
    """(the heads of an order, sorted; each as text; the place that each has in the order)."""
    places: dict[Head, int] = {}
    for place, (layer, head) in enumerate(order):
        places.setdefault((layer, int(head)), place)
    heads = sorted(places)
    return heads, [f"[{layer},{head}]" for layer, head in heads], [places[head] for head in heads]


@lru_cache(maxsize=4)  # a thousand specs, asked for at every look at what a greedy ranking waits for
def _single_rewinds(probe: Probe, selections: tuple[Heads | Matrices, ...]) -> tuple[Spec, ...]:
    """The evaluation of the tuned checkpoint, then of each of these selections rewound alone."""
    from cpt_lab.interventions.rewind import Rewind  # they build on this package

    assert probe.base is not None
    return _evaluations(probe, [Rewind(base=probe.base, select=selection, kv=probe.kv) for selection in selections])


@lru_cache(maxsize=4)
def _single_drops(probe: Probe, num_layers: int) -> tuple[Spec, ...]:
    """The evaluation of the tuned checkpoint, then of it without each layer alone."""
    from cpt_lab.interventions.prune_layers import Layers, PruneLayers

    return _evaluations(probe, [PruneLayers(select=Layers(layers=(layer,))) for layer in range(num_layers)])


def _evaluations(probe: Probe, changes: Sequence[Intervention]) -> tuple[Spec, ...]:
    from cpt_lab.specs.evaluations import Evaluation
    from cpt_lab.specs.patched import Patched

    changed = (Patched(tuned=probe.tuned, interventions=(change,)) for change in changes)
    return tuple(Evaluation(checkpoint=checkpoint, protocol=probe.protocol) for checkpoint in (probe.tuned, *changed))
