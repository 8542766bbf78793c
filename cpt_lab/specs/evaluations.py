"""Scores as specs: the evaluation of a checkpoint under a protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cpt_lab.specs.base import Spec
from cpt_lab.specs.checkpoints import Checkpoint, FolderCheckpoint, HubCheckpoint, TrainedCheckpoint
from cpt_lab.specs.patched import Patched
from cpt_lab.specs.protocols import Protocol


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
