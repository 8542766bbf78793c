"""What happens inside a model while it reads, as specs: attention entropy, and similarity of the layers of two models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cpt_lab.specs.base import Spec
from cpt_lab.specs.patched import Weights, weights_of
from cpt_lab.specs.protocols import Protocol


class Prompts(Spec):
    """The prompts of the first documents of one task of a protocol, as a model reads them before it answers; of perplexities, the texts."""

    kind: Literal["prompts"] = "prompts"
    protocol: Protocol
    task: str | None = Field(default=None, description="None: the protocol's first")
    count: int = Field(default=100, gt=0, description="T uses 100")

    def label(self) -> str:
        return f"{self.task or self.protocol.tasks[0].name}-{self.count}"


class AttentionEntropy(Spec):
    """How evenly each head spreads its attention over a prompt (T figures 4 and 15 to 18)."""

    FOLDER = "internals"
    PRODUCT = "attention entropy"
    kind: Literal["attention_entropy"] = "attention_entropy"
    checkpoint: Weights
    prompts: Prompts

    def needs(self) -> tuple[Spec, ...]:
        return (self.prompts.protocol, *weights_of(self.checkpoint))

    def label(self) -> str:
        return f"entropy-{self.prompts.label()}-{self.checkpoint.label()}"


class AttentionMaps(Spec):
    """Where chosen layers look while they read one prompt: the mean over a layer's heads, and single heads (T figure 4)."""

    FOLDER = "internals"
    PRODUCT = "attention maps"
    kind: Literal["attention_maps"] = "attention_maps"
    checkpoint: Weights
    prompts: Prompts = Field(description="the last of them is read")
    layers: tuple[int, ...] | None = Field(default=None, description="None: the first, the middle and the last")
    heads: tuple[int, ...] = Field(default=(), description="single heads beside the mean over all")
    cells: int = Field(default=128, gt=0, description="a longer prompt is averaged to so many rows and columns")

    @model_validator(mode="after")
    def _fits(self) -> AttentionMaps:
        shape = self.checkpoint.shape
        for name, asked, there in (("layer", self.layers or (), shape.num_layers), ("head", self.heads, shape.num_heads)):
            for number in asked:
                if not 0 <= number < there:
                    raise ValueError(f"no {name} {number} in a model of {there}: give numbers from 0 to {there - 1}")
        return self

    @property
    def shown(self) -> tuple[int, ...]:
        """The layers, each once."""
        last = self.checkpoint.shape.num_layers - 1
        return tuple(dict.fromkeys((0, last // 2, last) if self.layers is None else self.layers))

    def needs(self) -> tuple[Spec, ...]:
        return (self.prompts.protocol, *weights_of(self.checkpoint))

    def label(self) -> str:
        return f"attention-{self.prompts.label()}-{self.checkpoint.label()}"


class LayerSimilarity(Spec):
    """How alike the layers of two models represent the same prompts: linear CKA of every layer with every layer (T eq. 17, figure 6)."""

    FOLDER = "internals"
    PRODUCT = "layer similarity"
    kind: Literal["layer_similarity"] = "layer_similarity"
    checkpoint: Weights
    against: Weights
    prompts: Prompts

    def needs(self) -> tuple[Spec, ...]:
        return (self.prompts.protocol, *weights_of(self.checkpoint), *weights_of(self.against))

    def label(self) -> str:
        return f"cka-{self.prompts.label()}-{self.checkpoint.label()}"
