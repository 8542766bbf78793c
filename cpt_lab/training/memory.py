"""How many sequences of a training batch a GPU holds at a time, by what its activations and logits take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpt_lab.specs import ModelShape, Recipe

USABLE = 0.85  # of what is free beside weights, gradients and moments: the allocator leaves gaps
STATE_BYTES = 16  # of a weight: itself, its gradient and two moments, all in float32
LOGIT_BYTES = 12  # of a token and an entry of the vocabulary: logits in bf16 and in float32, and their gradient
MOST_TOKENS = 2**16  # beyond it a GPU is busy already
KEPT_LAYERS = {"none": 1.0, "half": 0.5, "full": 0.0}  # whose activations wait for the backward pass, by execution.activation_checkpointing


def activation_bytes(shape: ModelShape, recipe: Recipe, *, checkpointing: str = "none", fused_loss: bool = False) -> int:
    """Bytes that a sequence takes between its forward and its backward pass.

    Per token and kept layer 16 vectors of the hidden size (norms, q, k, v with and without their norm and rotation, residuals) and 4 of
    the MLP's; per token and recomputed layer its input; one layer at least is whole. Logits unless the loss is fused.
    """
    size = 2 if recipe.precision == "bf16" else 4
    layer = size * (16 * shape.hidden_size + 4 * shape.mlp_size)
    kept = max(1.0, KEPT_LAYERS[checkpointing] * shape.num_layers)
    token = kept * layer + (shape.num_layers - kept) * size * shape.hidden_size + (0 if fused_loss else LOGIT_BYTES * shape.vocab_size)
    return int(token * recipe.sequence_length)


def sequences_that_fit(
    shape: ModelShape, recipe: Recipe, *, share: int, total: int, sharded: int = 1, checkpointing: str = "none", fused_loss: bool = False
) -> int:
    """The largest divisor of a rank's `share` of the batch that fits `total` bytes of its GPU, 1 at least.

    Weights, gradients and moments are spread over `sharded` GPUs.
    """
    free = USABLE * (total - STATE_BYTES * shape.parameters / sharded)
    fits = int(free // activation_bytes(shape, recipe, checkpointing=checkpointing, fused_loss=fused_loss))
    most = min(fits, share, max(1, MOST_TOKENS // recipe.sequence_length))
    return next((rows for rows in range(most, 0, -1) if share % rows == 0), 1)
