"""Spectra as specs: the decompositions of one layer, the columns that are made of them, the table of columns.

Only parts are expensive, so they are what workers share and what an interrupted table goes on from: columns and tables are functions of
them that take seconds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cpt_lab.families import ATTENTION_ROLES, ROLES, Role, roles_of
from cpt_lab.names import unknown
from cpt_lab.specs.base import Spec
from cpt_lab.specs.checkpoints import Checkpoint

Scope = Literal["heads", "attention", "mlp"]  # the heads' blocks of q, k, v, o; these matrices whole; the other matrices
Decomposed = Literal["values", "null", "pair"]
Null = Literal["analytic", "permute"]
Distance = Literal["clauset", "two_sided"]
OPTIONS: dict[str, tuple[str, ...]] = {  # of a table, by the families whose columns depend on them
    "power_law": ("min_tail", "ks"),
    "tails": ("min_tail", "ks", "samples", "seed"),
    "marchenko_pastur": ("null_model", "seed"),
}


class SpectralPart(Spec):
    """What is decomposed of one layer: the singular values of its matrices, of the same with permuted entries, or two checkpoints' vectors.

    With `against` values are those of checkpoint - against.
    """

    FOLDER = "spectral_parts"
    PRODUCT = "decomposition of a layer"
    kind: Literal["spectral_part"] = "spectral_part"
    checkpoint: Checkpoint
    against: Checkpoint | None = None
    layer: int = Field(ge=0)
    scope: Scope
    of: Decomposed
    seed: int | None = Field(default=None, ge=0, description="of the permutations of a null; all else has none")

    @model_validator(mode="before")
    @classmethod
    def _only_nulls_are_drawn(cls, data: Any) -> Any:
        return {**data, "seed": None} if isinstance(data, dict) and data.get("of") != "null" else data

    @model_validator(mode="after")
    def _fits(self) -> SpectralPart:
        if self.layer >= self.checkpoint.shape.num_layers:
            raise ValueError(f"no layer {self.layer} in a model of {self.checkpoint.shape.num_layers}: give a smaller one")
        if self.of == "pair" and self.against is None:
            raise ValueError("a pair is of two checkpoints: give the other one as `against`")
        if self.of == "null" and self.seed is None:
            raise ValueError("a null is drawn: give it a seed")
        return self

    def needs(self) -> tuple[Spec, ...]:
        return _checkpoints(self)

    def label(self) -> str:
        return f"{self.of}-{self.scope}-layer{self.layer}-{_label(self)}"


class SpectralColumns(Spec):
    """All measures of one family, of every block in a scope: what a table with any of them takes its columns from."""

    FOLDER = "spectral_columns"
    PRODUCT = "columns of a spectra table"
    kind: Literal["spectral_columns"] = "spectral_columns"
    checkpoint: Checkpoint
    against: Checkpoint | None = None
    scope: Scope
    family: str
    measures: tuple[str, ...] = Field(min_length=1, description="all that the family has, so that a new one makes new columns")
    min_tail: int | None = Field(default=None, description="of power laws; None: a tenth of the values, at least 10")
    ks: Distance | None = None
    null_model: Null | None = None
    samples: int | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=0)

    def needs(self) -> tuple[SpectralPart, ...]:
        return _parts(self)

    def label(self) -> str:
        return f"{self.family}-{self.scope}-{_label(self)}"


class Spectra(Spec):
    """Spectral measures per head and per matrix: of a checkpoint, of its delta to another one, or of how the two agree.

    A measure's family says what it is of (see `cpt_lab/spectra`): some are of the pair, all others of the weights, or of the delta.
    """

    FOLDER = "spectra"
    PRODUCT = "spectra table"
    kind: Literal["spectra"] = "spectra"
    checkpoint: Checkpoint
    against: Checkpoint | None = Field(default=None, description="the base; measures are then of checkpoint - against, or of the pair")
    measures: tuple[str, ...] = Field(min_length=1, description="columns of the table, in this order")
    blocks: Literal["all", "heads", "matrices"] = Field(default="all", description="matrices are whole, and cost by far the most")
    roles: tuple[Role, ...] | None = Field(default=None, description="None: all that the model has")
    min_tail: int | None = Field(default=None, ge=5, description="of power laws; None: a tenth of the values, at least 10")
    ks: Distance = Field(default="clauset", description="the distance of a spectrum to its power law: one or two sides of each step")
    null_model: Null = Field(
        default="analytic", description="what an outlier is measured by: the entries' deviation, or the matrix permuted"
    )
    samples: int = Field(default=1000, gt=0, description="of the bootstrap of p-values")
    seed: int = Field(default=0, ge=0, description="of permutations and of the bootstrap")
    indices: bool = Field(default=False, description="also the long form: a row per singular value")

    @field_validator("measures")
    @classmethod
    def _known_and_once(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        from cpt_lab.spectra import NAMES

        for name in measures:
            if name not in NAMES:
                raise ValueError(unknown("spectral measure", name, NAMES))
        return tuple(dict.fromkeys(measures))

    @field_validator("roles", mode="before")
    @classmethod
    def _known_and_in_order(cls, roles: Any) -> tuple[Role, ...] | None:
        if roles is None:
            return None
        for role in roles:
            if role not in ROLES:
                raise ValueError(unknown("role", str(role), ROLES))
        return tuple(role for role in ROLES if role in roles)

    @model_validator(mode="after")
    def _fits(self) -> Spectra:
        from cpt_lab.spectra import FAMILY_OF, PAIR_FAMILIES

        of_pairs = [name for name in self.measures if FAMILY_OF[name] in PAIR_FAMILIES]
        if of_pairs and self.against is None:
            raise ValueError(f"{of_pairs[0]} compares two checkpoints and there is one: give the other one as `against`")
        _check_roles(self)
        return self

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Where its rows come from."""
        wanted = roles_of(self.checkpoint.shape.family) if self.roles is None else self.roles
        attention, mlp = any(role in ATTENTION_ROLES for role in wanted), any(role not in ATTENTION_ROLES for role in wanted)
        asked: dict[Scope, bool] = {
            "heads": attention and self.blocks != "matrices",
            "attention": attention and self.blocks != "heads",
            "mlp": mlp and self.blocks != "heads",
        }
        return tuple(scope for scope, wanted in asked.items() if wanted)

    def needs(self) -> tuple[Spec, ...]:
        return _columns(self)

    def columns(self) -> tuple[SpectralColumns, ...]:
        """What it takes its columns from, scope by scope."""
        return tuple(need for need in self.needs() if isinstance(need, SpectralColumns))

    def parts(self) -> tuple[SpectralPart, ...]:
        """What the long form takes its rows from, layer by layer; nothing where it is not asked for."""
        return tuple(need for need in self.needs() if isinstance(need, SpectralPart))

    def label(self) -> str:
        return _label(self)


def _check_roles(spec: Spectra) -> None:
    """ValueError if nothing is left of the model in the asked roles and blocks, or a role is not in it."""
    present = roles_of(spec.checkpoint.shape.family)
    for role in spec.roles or ():
        if role not in present:
            raise ValueError(f"{spec.checkpoint.shape.family} models have no {role}: choose roles from {', '.join(present)}")
    if not spec.scopes:
        asked = "no roles" if not spec.roles else f"blocks={spec.blocks} of the roles {', '.join(spec.roles)}"
        raise ValueError(f"a spectra table of {asked} has no rows: choose roles from {', '.join(present)}; of them q, k, v, o have heads")


def _checkpoints(spec: SpectralPart | SpectralColumns) -> tuple[Spec, ...]:
    return (spec.checkpoint,) if spec.against is None else (spec.checkpoint, spec.against)


def _label(spec: SpectralPart | SpectralColumns | Spectra) -> str:
    return f"{spec.checkpoint.label()}-delta" if spec.against is not None else spec.checkpoint.label()


@lru_cache(maxsize=64)  # a few hundred specs, asked for at every look at what a table waits for
def _columns(spec: Spectra) -> tuple[Spec, ...]:
    from cpt_lab.spectra import FAMILY_OF, MEASURES

    families = list(dict.fromkeys(FAMILY_OF[name] for name in spec.measures))
    columns = tuple(
        SpectralColumns(
            checkpoint=spec.checkpoint,
            against=spec.against,
            scope=scope,
            family=name,
            measures=MEASURES[name],
            **_options(spec, name),
        )
        for scope in spec.scopes
        for name in families
    )
    return (*columns, *_of_indices(spec, columns))


def _options(spec: Spectra, name: str) -> dict[str, Any]:
    """The options that columns of this family depend on: the others must not be part of their key."""
    chosen = {option: getattr(spec, option) for option in OPTIONS.get(name, ())}
    return chosen | ({"seed": None} if chosen.get("null_model") == "analytic" else {})


def _of_indices(spec: Spectra, columns: tuple[SpectralColumns, ...]) -> tuple[SpectralPart, ...]:
    """The parts that the long form has rows of: values, the nulls and pairs that columns read, and the base's values beside a pair."""
    if not spec.indices:
        return ()
    found = [part for scope in spec.scopes for part in _layers(spec.checkpoint, spec.against, scope, "values")]
    found += [part for column in columns for part in column.needs() if part.of != "values"]
    if spec.against is not None and any(part.of == "pair" for part in found):
        found += [part for scope in spec.scopes for part in _layers(spec.against, None, scope, "values")]
    return tuple(dict.fromkeys(found))


def _parts(columns: SpectralColumns) -> tuple[SpectralPart, ...]:
    from cpt_lab.spectra import PAIR_FAMILIES

    checkpoint, against, scope = columns.checkpoint, columns.against, columns.scope
    if columns.family == "svsm" and against is not None:  # how far every singular value went: of the two by themselves
        return _layers(checkpoint, None, scope, "values") + _layers(against, None, scope, "values")
    if columns.family in PAIR_FAMILIES:
        return _layers(checkpoint, against, scope, "pair")
    values = _layers(checkpoint, against, scope, "values")
    return values + _layers(checkpoint, against, scope, "null", columns.seed) if columns.null_model == "permute" else values


@lru_cache(maxsize=256)  # the same values, whichever columns read them
def _layers(
    checkpoint: Checkpoint, against: Checkpoint | None, scope: Scope, of: Decomposed, seed: int | None = None
) -> tuple[SpectralPart, ...]:
    layers = range(checkpoint.shape.num_layers)
    return tuple(SpectralPart(checkpoint=checkpoint, against=against, layer=layer, scope=scope, of=of, seed=seed) for layer in layers)
