"""A model made ready to be scored: on the CPU, on one GPU, or over several where one is too small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpt_lab.execution import Execution
from cpt_lab.specs import Checkpoint, key
from cpt_lab.weights import check_finite

FOR_WEIGHTS = 0.8  # of a GPU's free memory: the rest is for keys, values and logits


def load_model(folder: Path, spec: Checkpoint, dtype: str, how: Execution) -> Any:
    """A transformers model on its device or devices, in the protocol's dtype, checked for non-finite weights.

    It is spread over no more GPUs than the worker is meant to have, even if it sees more; ValueError if it does not fit them.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device, precision = how.on_device(), getattr(torch, dtype)
    count = min(how.gpus, torch.cuda.device_count()) if device == "cuda" else 0
    free = [torch.cuda.mem_get_info(index)[0] for index in range(count)]
    if free and must_spread(spec.shape.parameters * precision.itemsize, free):
        room = {index: int(FOR_WEIGHTS * memory) for index, memory in enumerate(free)}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision, device_map="auto", max_memory=room)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=precision).to(device)
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # transformers' other attentions leave the cap of Gemma 2 out
    check_finite(dict(model.named_parameters()), key(spec))
    return model.eval()


def must_spread(needed: int, free: Sequence[int]) -> bool:
    """Whether weights of so many bytes need more than the first of these GPUs; ValueError if they do not fit all of them together."""
    if needed <= FOR_WEIGHTS * free[0]:
        return False
    if needed > FOR_WEIGHTS * sum(free):
        raise ValueError(
            f"the weights take {needed / 1e9:.1f} GB and the {len(free)} GPUs of this worker have {sum(free) / 1e9:.1f} GB free, of which "
            f"weights may take {FOR_WEIGHTS:.0%}: give it more GPUs with execution.gpus (on SLURM also "
            "site.stages.evaluate.gpus, if it is set), or set protocol.dtype=bfloat16"
        )
    return True
