"""Scores as specs: the evaluation of a checkpoint under a protocol."""

from __future__ import annotations

from typing import Literal

from cpt_lab.specs.base import Spec
from cpt_lab.specs.checkpoints import Checkpoint
from cpt_lab.specs.patched import Weights, loaded, weights_of
from cpt_lab.specs.protocols import Protocol


class Evaluation(Spec):
    """The scores of one (patched) checkpoint under one protocol: a point of a study."""

    FOLDER = "evaluations"
    PRODUCT = "evaluation"
    kind: Literal["evaluation"] = "evaluation"
    checkpoint: Weights
    protocol: Protocol

    def needs(self) -> tuple[Spec, ...]:
        return (self.protocol, *weights_of(self.checkpoint))

    @property
    def loaded(self) -> Checkpoint:
        """The checkpoint that a worker loads (and edits) to score this point."""
        return loaded(self.checkpoint)

    def label(self) -> str:
        return f"{self.protocol.label()}-{self.checkpoint.label()}"
