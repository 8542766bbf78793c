"""Weights as specs: a model's shape, a training recipe, and the checkpoints that are found or trained."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from cpt_lab.families import ATTENTION_ROLES, Place, family
from cpt_lab.specs.base import Spec
from cpt_lab.specs.corpora import Tokenizer
from cpt_lab.specs.mixtures import Mixture
from cpt_lab.specs.watch import Watch


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

    @cached_property  # asked for by every point that is scored with it
    def parameters(self) -> int:
        """All weights: of the layers' matrices, biases and norms, of the embedding, and of the output matrix unless it is that too."""
        row = family(self.family)
        layer = sum(self._size(place) for place in row.places) + row.layer_vectors * self.hidden_size
        rows = self.vocab_size * (1 if self.tied_embeddings else 2) + (self.context if row.learned_positions else 0)
        return self.num_layers * layer + (rows + row.last_vectors) * self.hidden_size

    def _size(self, place: Place) -> int:
        if place.kind == "shared":
            return self.hidden_size if place.role in ("o", "down") else self.head_dim
        heads = self.num_kv_heads if place.role in ("k", "v") else self.num_heads
        width = self.head_dim * heads if place.role in ATTENTION_ROLES else self.mlp_size
        return width * (self.hidden_size if place.kind == "matrix" else 1)


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
    IF_GIVEN = frozenset({"watch"})
    kind: Literal["trained_checkpoint"] = "trained_checkpoint"
    shape: ModelShape
    start: Checkpoint | None = None
    tokenizer: Tokenizer
    mixture: Mixture
    recipe: Recipe
    watch: Watch | None = Field(default=None, description="spectra that are taken while it trains, if any")

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
        if recipe.warmup_tokens >= self.mixture.tokens:
            raise ValueError(
                f"a warm-up of {recipe.warmup_tokens:,} tokens does not end within the {self.mixture.tokens:,} of mixture "
                f"{self.mixture.name}: lower training.warmup_tokens or raise the mixture's tokens"
            )
        return self

    @property
    def steps(self) -> int:
        """Whole batches of the mixture; what is left below one is not used."""
        return self.mixture.tokens // self.recipe.batch_tokens

    def needs(self) -> tuple[Spec, ...]:
        start = (self.start,) if self.start is not None else ()
        return (self.tokenizer, *self.mixture.token_files(self.tokenizer), *start)

    def label(self) -> str:
        stage = "pretrain" if self.start is None or isinstance(self.start, SpectralWarmup) else "cpt"
        shares = "-".join(part.corpus.name for part in self.mixture.parts)
        return f"{stage}-{shares}-{self.mixture.tokens}"


class OlmoCoreCheckpoint(Spec):
    """A checkpoint in OLMo-core's own format, identified by its contents: training goes on from it with its optimizer's state, if any."""

    FOLDER = "checkpoints"
    PRODUCT = "checkpoint"
    NOT_IDENTITY = frozenset({"path"})
    kind: Literal["olmo_core_checkpoint"] = "olmo_core_checkpoint"
    path: str
    contents_digest: str
    shape: ModelShape
    tokenizer: Tokenizer

    def needs(self) -> tuple[Spec, ...]:
        return (self.tokenizer,)

    def label(self) -> str:
        return "olmo-core"


class Intermediate(Spec):
    """The weights that a training run had after so many of its tokens. The run is made whole and leaves them on its way."""

    FOLDER = "checkpoints"
    PRODUCT = "checkpoint"
    kind: Literal["intermediate_checkpoint"] = "intermediate_checkpoint"
    of: TrainedCheckpoint
    tokens: int = Field(gt=0, description="a whole number of batches, fewer than the run has")

    @model_validator(mode="after")
    def _is_on_the_way(self) -> Intermediate:
        batch, whole = self.of.recipe.batch_tokens, self.of.steps * self.of.recipe.batch_tokens
        if self.tokens >= whole:
            raise ValueError(f"the run ends after {whole:,} tokens, so that it has no weights after {self.tokens:,}: ask for fewer")
        if self.tokens % batch:
            before = self.tokens // batch * batch
            near = " or ".join(f"{number:,}" for number in (before, before + batch) if 0 < number < whole)
            raise ValueError(f"{self.tokens:,} tokens are no whole number of batches of {batch:,}: the nearest are {near}")
        return self

    @property
    def shape(self) -> ModelShape:
        return self.of.shape

    @property
    def step(self) -> int:
        """The step of the run that leaves these weights."""
        return self.tokens // self.of.recipe.batch_tokens

    def needs(self) -> tuple[Spec, ...]:
        return (self.of,)

    def label(self) -> str:
        return f"{self.of.label()}-at-{self.tokens}"


class SpectralWarmup(Spec):
    """Random weights with the spectra of a trained model: each matrix is U diag(scale x s) V^T, s of the reference, U and V random (L F).

    Everything else, embeddings and norms, is as OLMo-core draws it. It is what a training run starts from.
    """

    FOLDER = "checkpoints"
    PRODUCT = "spectral warm-up"
    kind: Literal["spectral_warmup"] = "spectral_warmup"
    reference: Checkpoint
    scale: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)

    @property
    def shape(self) -> ModelShape:
        return self.reference.shape

    def needs(self) -> tuple[Spec, ...]:
        return (self.reference,)

    def label(self) -> str:
        return f"spectral_warmup-{self.scale:g}-seed{self.seed}"


Checkpoint = Annotated[
    HubCheckpoint | FolderCheckpoint | TrainedCheckpoint | OlmoCoreCheckpoint | Intermediate | SpectralWarmup, Field(discriminator="kind")
]

TrainedCheckpoint.model_rebuild()
SpectralWarmup.model_rebuild()
