"""Shapes and recipes of every model that a study trains (P table 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.drawing import Cell, Sheet
from analysis.figures.mixtures import trainings
from analysis.lineage import tokens_text
from analysis.results import Results
from cpt_lab.specs import TrainedCheckpoint

SHOWS = "architecture and training settings of every model that the study trains"
PAPERS = ("P table 3",)
NEEDS = "a checkpoint that is trained here (tuned.from=train), finished or planned"
SHAPE = {
    "hidden_size": "hidden size",
    "num_layers": "layers",
    "num_heads": "attention heads",
    "num_kv_heads": "key-value heads",
    "mlp_size": "MLP width",
    "rope_theta": "RoPE theta",
    "context": "context",
    "vocab_size": "vocabulary, padding included",
}
RECIPE = {
    "batch_sequences": "batch [sequences]",
    "sequence_length": "sequence [tokens]",
    "lr": "peak learning rate",
    "schedule": "schedule",
    "lr_final_share": "final / peak learning rate",
    "warmup_tokens": "warm-up [tokens]",
    "betas": "AdamW betas",
    "eps": "AdamW eps",
    "weight_decay": "weight decay",
    "z_loss": "z-loss",
    "max_grad_norm": "largest gradient norm",
    "precision": "precision",
    "seed": "seed",
}


def build(results: Results, settings: Mapping[str, Any]) -> Sheet:  # noqa: ARG001 (there is nothing to set)
    """A column per model and stage; ValueError if nothing is trained. Runs that differ in their data alone share a column."""
    found = {_column(spec): spec for spec in trainings(results)}
    rows = [("family", tuple(Cell(spec.shape.family) for spec in found.values()))]
    rows += [(label, tuple(_cell(getattr(spec.shape, name)) for spec in found.values())) for name, label in SHAPE.items()]
    rows += [("parameters", tuple(Cell(tokens_text(spec.shape.parameters)) for spec in found.values()))]
    rows += [(label, tuple(_cell(getattr(spec.recipe, name)) for spec in found.values())) for name, label in RECIPE.items()]
    groups = ((0, "Architecture"), (len(SHAPE) + 2, "Training"))
    caption = "MLP width is that of the gate and of the up projection, each."
    return Sheet("hyper_parameters", "Architecture and training", caption, ("", *found), tuple(rows), groups)


def _column(spec: TrainedCheckpoint) -> str:
    """`olmo2_1b CPT (1a2b3c4d)`: the hash tells recipes apart."""
    stage = "pre-training" if spec.start is None else "CPT"
    return f"{spec.shape.name} {stage} ({_short(spec)})"


def _short(spec: TrainedCheckpoint) -> str:
    import hashlib

    return hashlib.sha256(f"{spec.shape.model_dump_json()}{spec.recipe.model_dump_json()}".encode()).hexdigest()[:6]


def _cell(value: Any) -> Cell:
    if isinstance(value, tuple):
        return Cell(", ".join(f"{each:g}" for each in value))
    return Cell(value if isinstance(value, str) else "-" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}")
