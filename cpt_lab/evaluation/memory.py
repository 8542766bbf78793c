"""How much fits: batch sizes from free memory, and room for what is kept from model to model."""

from __future__ import annotations

from typing import Any

import psutil
import torch

FOR_ROWS = 0.4  # of the free memory, for the largest batch
FOR_KEEPING = 0.125  # of the free memory, for what is kept between models; workers beside this one take theirs
MOST_ROWS = {"cpu": 64, "cuda": 2048}  # beyond it nothing is gained: a CPU is busy already, a GPU waits for its own scores


def free_bytes(device: torch.device) -> int:
    """Memory that nobody uses now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def kept_bytes(device: torch.device) -> int:
    """Memory that may be filled with what is kept from one model to the next."""
    return int(FOR_KEEPING * free_bytes(device))


def rows_that_fit(model: Any, *, read: int, written: int) -> int:
    """How many rows of so many tokens fit into free memory, at least one: their keys and values, activations of a layer, and logits."""
    config, size = model.config, model.dtype.itemsize
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    mlp = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    remembered = 2 * config.num_hidden_layers * heads * head_dim * (read + written) if written else 0
    passing = read * (8 * config.hidden_size + 3 * mlp)
    row = size * (remembered + passing) + 4 * 4 * config.vocab_size
    return max(1, min(MOST_ROWS[model.device.type], int(FOR_ROWS * free_bytes(model.device) / row)))
