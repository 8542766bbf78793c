"""How things are computed, as opposed to what: nothing here is part of any key."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Execution(BaseModel):
    """Device, threads and batch sizes of one worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1, description="CPU threads of one worker")
    micro_batch_sequences: int | None = Field(default=None, ge=1, description="training; None: as many as memory holds")
    mode: Literal["fast", "reference"] = Field(default="fast", description="of evaluation; reference: the harness's own model answers")
    eval_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="prompts or questions in one forward pass; auto: what free memory holds"
    )
    allow_code_execution: bool = Field(default=False, description="programs that a model wrote may run, in the sandbox")
    compile: bool = Field(default=True, description="training on a GPU: torch.compile")
    activation_checkpointing: Literal["none", "half", "full"] = Field(
        default="none", description="layers whose activations are computed twice and not kept: none, every other, all"
    )
    fused_loss: Literal["auto", "on", "off"] = Field(
        default="auto", description="loss without a matrix of logits, by Liger; auto: on a GPU where liger-kernel is installed"
    )
    ranks: int | None = Field(default=None, ge=1, description="processes of a training run on each node; None: one per GPU it sees, else 1")
    validations: int = Field(
        default=10, ge=0, description="of a training run, evenly over its tokens, on every corpus's held-out documents"
    )
    keep_every: int | None = Field(default=None, gt=0, description="tokens: a training run also keeps its weights so often")
    keep_at: tuple[int, ...] = Field(default=(), description="tokens after which a training run also keeps its weights")
    keep_states: int = Field(default=1, ge=1, description="states of a training run to resume from: the last so many")
    checkpoint_minutes: float = Field(default=20.0, gt=0, description="a training run keeps a state to resume from so often")
    spectra_share: float = Field(default=0.05, gt=0, lt=1, description="of a training run's time that spectra may take")
    point_minutes: float | None = Field(default=None, gt=0, description="any step but a training that takes longer is given up")
    gpus: int = Field(
        default=1, ge=1, description="of one worker that evaluates: a model that does not fit one is spread over them, and over no more"
    )
    halvings: int = Field(default=0, ge=0, description="of every batch, after memory ran out")

    def smaller(self) -> Execution:
        """The same with half the batches."""
        return self.model_copy(update={"halvings": self.halvings + 1})

    def rows(self, asked: int) -> int:
        """Rows of a batch for which so many were asked: asked / 2^halvings, at least 1."""
        return max(1, asked >> self.halvings)

    def on_device(self) -> str:
        """`cuda` or `cpu`; ValueError if CUDA is asked for and there is none."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda was asked for, but torch sees no GPU: use device=cpu or device=auto")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"
