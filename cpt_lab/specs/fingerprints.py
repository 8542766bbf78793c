"""The question whether a checkpoint descends from another, as a spec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cpt_lab.specs.base import Spec
from cpt_lab.specs.checkpoints import Checkpoint


class Fingerprint(Spec):
    """Whether `checkpoint` descends from `against`: their attention matrices layer by layer, beside matrices that have nothing in common.

    These are the controls: other layers of the same two checkpoints, and the same layers of unrelated checkpoints.
    """

    FOLDER = "fingerprints"
    PRODUCT = "fingerprint"
    kind: Literal["fingerprint"] = "fingerprint"
    checkpoint: Checkpoint
    against: Checkpoint
    controls: tuple[Checkpoint, ...] = Field(default=(), description="unrelated checkpoints of the same sizes")
    layers: int | None = Field(default=8, ge=2, description="how many are compared, evenly spaced; None: all")
    mismatches: int = Field(default=2, ge=1, description="other layers that each layer of `against` is compared with")

    @model_validator(mode="after")
    def _has_layers(self) -> Fingerprint:
        if self.checkpoint.shape.num_layers < 2:
            raise ValueError("a fingerprint compares layers with other layers, and the model has one: give a deeper model")
        return self

    def needs(self) -> tuple[Spec, ...]:
        return (self.checkpoint, self.against, *self.controls)

    @property
    def compared(self) -> tuple[int, ...]:
        """The layers, from the first to the last."""
        last = self.checkpoint.shape.num_layers - 1
        count = min(self.layers or last + 1, last + 1)
        return tuple(place * last // (count - 1) for place in range(count))

    @property
    def mismatched(self) -> tuple[tuple[int, int], ...]:
        """Pairs of a layer of `against` and another one of `checkpoint`: each layer stands as often on either side."""
        layers, steps = self.compared, range(1, min(self.mismatches, len(self.compared) - 1) + 1)
        return tuple((layer, layers[(place + step) % len(layers)]) for place, layer in enumerate(layers) for step in steps)

    def label(self) -> str:
        return f"{self.checkpoint.label()}-from-{self.against.label()}"
