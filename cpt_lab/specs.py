"""The nouns of a study: frozen, validated values that say what is wanted, never how.

A spec contains the specs it needs, so the dependency graph of a study is the value itself. Its key is a readable label plus a hash of
its canonical JSON; fields that only say where or how something is found (paths, a shape that is implied by the weights) are left out
of the hash. Importing this module needs neither torch nor a network.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

if TYPE_CHECKING:
    from cpt_lab.patch import Patch

SCHEMA = 1  # raise when the meaning of a stored product changes: every key changes with it
KEY_DIGITS = 16  # 64 bits of SHA-256; the stored spec guards against the rest
LABEL_LENGTH = 60


class Spec(BaseModel):
    """A frozen value with an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset()
    FOLDER: ClassVar[str] = ""  # where the store keeps its product; empty: it is only ever part of another spec
    PRODUCT: ClassVar[str] = ""  # what one is called in messages

    def needs(self) -> tuple[Spec, ...]:
        """The specs whose products must exist before this one can be built."""
        return ()

    def label(self) -> str:
        """A few readable words; the readable half of the key."""
        return self.FOLDER

    def but(self, **changes: Any) -> Self:
        """The same spec with some fields changed, validated."""
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def model_copy(self, **_: Any) -> Self:
        raise TypeError(f"model_copy would copy a cached key: use {type(self).__name__}.but(...)")

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(canonical_json(self).encode()).hexdigest()


def identity(value: Any) -> Any:
    """The scientific content of a spec as plain JSON values, numbers normalised by their declared types."""
    if isinstance(value, Spec):
        fields = (name for name in type(value).model_fields if name not in value.NOT_IDENTITY)
        return {name: identity(getattr(value, name)) for name in fields}
    if isinstance(value, dict):
        return {str(name): identity(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [identity(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a spec holds the number {value}, which has no place in a key: give a finite number")
        return value + 0.0  # -0.0 and 0.0 are one value
    return value


def canonical_json(spec: Spec) -> str:
    """The text that is hashed: sorted keys, no blanks, the schema version beside the content."""
    content = {"schema": SCHEMA, "spec": identity(spec)}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(spec: Spec) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return spec._digest


def key(spec: Spec) -> str:
    """`label-hash`: the name of the spec's folder in the store."""
    label = re.sub(r"[^A-Za-z0-9_.]+", "-", spec.label()).strip("-.")[:LABEL_LENGTH].rstrip("-.")
    return f"{label}-{digest(spec)[:KEY_DIGITS]}"


# ---------------------------------------------------------------------------------------------------------------- data


class BuiltinCorpus(Spec):
    """A small corpus that every installation can make by itself: no network, no licence question."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    kind: Literal["builtin_corpus"] = "builtin_corpus"
    name: Literal["text", "code", "math", "inst"]
    documents: int = Field(gt=0, description="at most so many training documents; text and code may have fewer")
    held_out: int = Field(gt=0, description="documents in each of validation and test")
    seed: int = 0

    def label(self) -> str:
        return self.name


class FilesCorpus(Spec):
    """Documents in local files (jsonl, one object a line), identified by their contents."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    NOT_IDENTITY = frozenset({"files"})
    kind: Literal["files_corpus"] = "files_corpus"
    name: str
    files: tuple[str, ...] = Field(min_length=1)
    files_digest: str
    field: str = "text"
    held_out: int = Field(gt=0)
    seed: int = 0

    def label(self) -> str:
        return self.name


class HubCorpus(Spec):
    """Documents of a Hugging Face data set."""

    FOLDER = "corpora"
    PRODUCT = "corpus"
    kind: Literal["hub_corpus"] = "hub_corpus"
    name: str
    id: str
    revision: str = "main"
    config: str | None = None
    data_files: str | None = None
    split: str = "train"
    field: str = "text"
    available_tokens: int | None = Field(default=None, gt=0, description="how many tokens it holds, if that is known")

    def label(self) -> str:
        return self.name


Corpus = Annotated[BuiltinCorpus | FilesCorpus | HubCorpus, Field(discriminator="kind")]


class BpeTokenizer(Spec):
    """A byte-level BPE trained once on the train splits of some corpora; digits are single tokens."""

    FOLDER = "tokenizers"
    PRODUCT = "tokenizer"
    kind: Literal["bpe_tokenizer"] = "bpe_tokenizer"
    corpora: tuple[Corpus, ...] = Field(min_length=1)
    vocab_size: int = Field(ge=300)

    def needs(self) -> tuple[Spec, ...]:
        return self.corpora

    def label(self) -> str:
        return f"bpe-{self.vocab_size}"


class HubTokenizer(Spec):
    """The tokenizer that comes with a hub checkpoint."""

    FOLDER = "tokenizers"
    PRODUCT = "tokenizer"
    kind: Literal["hub_tokenizer"] = "hub_tokenizer"
    id: str
    revision: str = "main"

    def label(self) -> str:
        return f"{self.id}-{self.revision}"


Tokenizer = Annotated[BpeTokenizer | HubTokenizer, Field(discriminator="kind")]


class Tokens(Spec):
    """One split of a corpus as a flat file of token ids, documents ended by EOS."""

    FOLDER = "tokens"
    PRODUCT = "token file"
    kind: Literal["tokens"] = "tokens"
    corpus: Corpus
    split: Literal["train", "validation", "test"] = "train"
    tokenizer: Tokenizer

    def needs(self) -> tuple[Spec, ...]:
        return (self.corpus, self.tokenizer)

    def label(self) -> str:
        return f"{self.corpus.name}-{self.split}"


class Part(Spec):
    """So many tokens of one corpus; `oversample` allows repeating it."""

    corpus: Corpus
    tokens: int = Field(gt=0)
    oversample: bool = False


class Mixture(Spec):
    """What a model is trained on: exact token budgets per corpus."""

    name: str
    parts: tuple[Part, ...] = Field(min_length=1)
    seed: int = 0
    NOT_IDENTITY = frozenset({"name"})

    @property
    def tokens(self) -> int:
        """The token budget of the whole mixture."""
        return sum(part.tokens for part in self.parts)

    @field_validator("parts")
    @classmethod
    def _each_corpus_once(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        names = [part.corpus.name for part in parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"corpus {twice[0]} stands twice in the mixture: give it one part with the sum of the tokens")
        return parts


# --------------------------------------------------------------------------------------------------------- checkpoints


class ModelShape(Spec):
    """The sizes of a decoder-only transformer, as its released configuration states them."""

    name: str
    family: str = Field(description="a row of FAMILIES in architecture.py")
    hidden_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    mlp_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0, description="rows of the embedding, padding included")
    context: int = Field(gt=0)
    rope_theta: float = 500000.0
    norm_eps: float = 1e-6
    tied_embeddings: bool = False
    NOT_IDENTITY = frozenset({"name"})

    @model_validator(mode="after")
    def _groups_are_whole(self) -> ModelShape:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_kv_heads} kv heads evenly: num_kv_heads must divide num_heads")
        return self

    @property
    def total_heads(self) -> int:
        return self.num_layers * self.num_heads

    @property
    def parameters(self) -> int:
        """Weights of the matrices (norms are left out: below a tenth of a per mille)."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * (attention + 3 * self.hidden_size * self.mlp_size) + embeddings


class Recipe(Spec):
    """How a model is trained: everything that changes its weights, nothing that only changes its speed."""

    sequence_length: int = Field(gt=0, description="tokens")
    batch_sequences: int = Field(gt=0, description="global batch, in sequences")
    lr: float = Field(gt=0)
    schedule: Literal["cosine", "linear"]
    lr_final_share: float = Field(ge=0, le=1, description="learning rate at the end / peak")
    warmup_tokens: int = Field(default=0, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    z_loss: float = Field(default=1e-5, ge=0)
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    seed: int = 0

    @property
    def batch_tokens(self) -> int:
        return self.sequence_length * self.batch_sequences


class HubCheckpoint(Spec):
    """Weights on the Hugging Face hub. Pin a commit as `revision` for an identity that nobody can move."""

    FOLDER = "checkpoints"
    PRODUCT = "checkpoint"
    NOT_IDENTITY = frozenset({"shape"})
    kind: Literal["hub_checkpoint"] = "hub_checkpoint"
    id: str
    revision: str
    shape: ModelShape

    def label(self) -> str:
        return f"{self.id.split('/')[-1]}-{self.revision}"


class FolderCheckpoint(Spec):
    """Weights in a local folder in Hugging Face format, identified by the contents of its safetensors files."""

    FOLDER = "checkpoints"
    PRODUCT = "checkpoint"
    NOT_IDENTITY = frozenset({"path"})  # the shape counts: a changed rope_theta changes the model, not its safetensors
    kind: Literal["folder_checkpoint"] = "folder_checkpoint"
    path: str
    weights_digest: str
    shape: ModelShape

    def label(self) -> str:
        return "folder"


class TrainedCheckpoint(Spec):
    """Weights that a recipe makes out of a mixture, from scratch or from another checkpoint (then it is CPT)."""

    FOLDER = "checkpoints"
    PRODUCT = "training run"
    kind: Literal["trained_checkpoint"] = "trained_checkpoint"
    shape: ModelShape
    start: Checkpoint | None = None
    tokenizer: Tokenizer
    mixture: Mixture
    recipe: Recipe

    @model_validator(mode="after")
    def _fits(self) -> TrainedCheckpoint:
        recipe, shape = self.recipe, self.shape
        if recipe.sequence_length > shape.context:
            raise ValueError(
                f"sequences of {recipe.sequence_length} tokens do not fit a context of {shape.context}: lower training.sequence_length"
            )
        if self.mixture.tokens < recipe.batch_tokens:
            raise ValueError(
                f"mixture {self.mixture.name} has {self.mixture.tokens:,} tokens, less than one batch of {recipe.batch_tokens:,}: "
                "raise its tokens or lower training.batch_sequences"
            )
        return self

    def needs(self) -> tuple[Spec, ...]:
        start = (self.start,) if self.start is not None else ()
        return (self.tokenizer, *(Tokens(corpus=part.corpus, tokenizer=self.tokenizer) for part in self.mixture.parts), *start)

    def label(self) -> str:
        stage = "pretrain" if self.start is None else "cpt"
        shares = "-".join(part.corpus.name for part in self.mixture.parts)
        return f"{stage}-{shares}-{self.mixture.tokens}"


Checkpoint = Annotated[HubCheckpoint | FolderCheckpoint | TrainedCheckpoint, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------------ spectra and rankings


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


# ------------------------------------------------------------------------------------------------------- interventions

Head = tuple[int, int]  # (layer, head)


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


class Intervention(Spec):
    """One change of weights as data; each kind is a class in `cpt_lab/interventions`."""

    kind: str

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


# ---------------------------------------------------------------------------------------------------------- evaluation


class GenerateTask(Spec):
    """A generative task of question and answer, scored by the harness's filters and exact match (GSM8K's own form)."""

    kind: Literal["generate"] = "generate"
    name: str
    corpus: BuiltinCorpus
    split: Literal["validation", "test"] = "test"
    items: int = Field(gt=0, description="the first so many items of the split")
    shots: int = Field(default=0, ge=0, description="the first so many items of the train split stand before each question")
    max_new_tokens: int = Field(gt=0)


class PerplexityTask(Spec):
    """Perplexity of held-out documents: each document alone, in rolling windows of the model's context."""

    kind: Literal["perplexity"] = "perplexity"
    name: str
    corpus: BuiltinCorpus
    split: Literal["validation", "test"] = "validation"
    items: int = Field(gt=0)


class HarnessTask(Spec):
    """A task of the harness by its own name and defaults."""

    kind: Literal["harness"] = "harness"
    name: str
    shots: int | None = Field(default=None, ge=0, description="None: as the task itself says")
    limit: int | None = Field(default=None, gt=0)


Task = Annotated[GenerateTask | PerplexityTask | HarnessTask, Field(discriminator="kind")]


class Protocol(Spec):
    """The complete identity of an evaluation."""

    FOLDER = "protocols"
    PRODUCT = "protocol"
    kind: Literal["protocol"] = "protocol"
    name: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    harness: str = Field(description="lm-eval's version")
    seed: int = 0

    def needs(self) -> tuple[Spec, ...]:
        return tuple({key(task.corpus): task.corpus for task in self.tasks if not isinstance(task, HarnessTask)}.values())

    def label(self) -> str:
        return self.name


class Evaluation(Spec):
    """The scores of one (patched) checkpoint under one protocol: a point of a study."""

    FOLDER = "evaluations"
    PRODUCT = "evaluation"
    kind: Literal["evaluation"] = "evaluation"
    checkpoint: Annotated[HubCheckpoint | FolderCheckpoint | TrainedCheckpoint | Patched, Field(discriminator="kind")]
    protocol: Protocol

    def needs(self) -> tuple[Spec, ...]:
        checkpoint = self.checkpoint
        weights = checkpoint.needs() if isinstance(checkpoint, Patched) else (checkpoint,)
        return (self.protocol, *weights)

    @property
    def loaded(self) -> Checkpoint:
        """The checkpoint that a worker loads (and edits) to score this point."""
        return self.checkpoint.tuned if isinstance(self.checkpoint, Patched) else self.checkpoint

    def label(self) -> str:
        return f"{self.protocol.label()}-{self.checkpoint.label()}"


TrainedCheckpoint.model_rebuild()

STORED: tuple[type[Spec], ...] = (
    *(BuiltinCorpus, FilesCorpus, HubCorpus, BpeTokenizer, HubTokenizer, Tokens),
    *(HubCheckpoint, FolderCheckpoint, TrainedCheckpoint, Spectra, Ranking, Patched, Protocol, Evaluation),
)


def parse(data: dict[str, Any]) -> Spec:
    """The spec that `model_dump` wrote, by its `kind`; ValueError if this version does not know the kind."""
    known = {cls.model_fields["kind"].default: cls for cls in STORED}
    if data.get("kind") not in known:
        raise ValueError(f"unknown kind of spec {data.get('kind')!r}; this version knows {', '.join(sorted(known))}")
    return known[data["kind"]].model_validate(data)


def closure(specs: tuple[Spec, ...] | list[Spec]) -> list[Spec]:
    """All specs that these need, and these, each once, needs before what needs them."""
    found: dict[str, Spec] = {}

    def visit(spec: Spec) -> None:
        name = key(spec)
        if name in found:
            return
        for need in spec.needs():
            visit(need)
        found[name] = spec

    for spec in specs:
        visit(spec)
    return list(found.values())


def rankings_of(spec: Spec) -> Iterator[Ranking]:
    """The rankings that a point waits for before its weights are known."""
    checkpoint = spec.checkpoint if isinstance(spec, Evaluation) else spec
    if isinstance(checkpoint, Patched):
        for change in checkpoint.interventions:
            yield from change.rankings()


def settled(spec: Spec, orders: dict[str, tuple[Head, ...]] | None = None) -> Spec:
    """The simplest spec of the same weights: rankings whose order is known (by key) become explicit units, idle changes go.

    Points of different criteria that select the same heads become one value, and so one result: all curves share their ends.
    """
    if isinstance(spec, Evaluation):
        return spec.but(checkpoint=settled(spec.checkpoint, orders))
    if not isinstance(spec, Patched):
        return spec
    changes = []
    for change in spec.interventions:
        for ranking in change.rankings():
            if orders and key(ranking) in orders:
                change = change.with_ranking(orders[key(ranking)])
        simplest = change.settled()
        if simplest is not None:
            changes.append(simplest)
    return spec.but(interventions=tuple(changes)) if changes else spec.tuned
