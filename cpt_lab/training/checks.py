"""What makes a training run fail, said in one sentence with a way out: before it begins, before it writes, and when memory is short."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab import failures, vocabularies
from cpt_lab.disk import STATE_BYTES, WEIGHT_BYTES
from cpt_lab.rates import DEVICES
from cpt_lab.store import write_atomically

if TYPE_CHECKING:
    from cpt_lab.specs import ModelShape, Recipe

SPARE_BYTES = 64 * 2**20  # for the files beside
MOST_NAMES = 10  # documents of a corpus that a message lists


def check_tokenizer(start: Path | None, tokenizer: Path) -> None:
    """ValueError if the checkpoint that a run starts from reads text with another tokenizer than the run's."""
    theirs, ours = (vocabularies.read(folder) for folder in (start, tokenizer))
    if theirs is None or ours is None:
        return
    apart = vocabularies.difference(theirs, ours, names=("the checkpoint", "model.tokenizer"))
    if apart:
        raise ValueError(f"training starts from a checkpoint with another tokenizer: {apart}; choose the tokenizer that the start has")


def check_vocabulary(needed: int, shape: ModelShape) -> None:
    """ValueError if the tokenizer has more tokens than the model has rows."""
    if needed > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {needed} tokens, but model {shape.name} has {shape.vocab_size} embeddings: raise model.shape.vocab_size"
        )


def check_room(folder: Path, shape: ModelShape, *, states: int = 0, folders: int = 0, mixed: int = 0) -> None:
    """OSError (ENOSPC) if the disk has no room for so many more states to resume from, folders of weights, and bytes of mixed tokens."""
    parts = {
        f"{states} states to resume from": states * STATE_BYTES * shape.parameters,
        f"{folders} folders of weights": folders * WEIGHT_BYTES * shape.parameters,
        "the mixed tokens": mixed,
    }
    needed = sum(parts.values()) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = [f"{name} ({size / 1e9:,.2f} GB)" for name, size in parts.items() if size]
        raise OSError(
            errno.ENOSPC,
            f"training {shape.name} needs {needed / 1e9:,.2f} GB for {', '.join(what)} and a reserve, and {folder} has "
            f"{free / 1e9:,.2f} GB free: free some space, then resume",
        )


def explain_memory(error: BaseException, recipe: Recipe, *, micro_batch: int) -> None:
    """ValueError with what can be changed if memory ran out with one sequence at a time; more at a time are tried again in halves."""
    if failures.is_out_of_memory(error) and micro_batch == 1:
        raise ValueError(
            f"memory does not hold one sequence of {recipe.sequence_length} tokens at a time: set "
            "execution.activation_checkpointing=full, and if it is, spread the run over more GPUs (site.stages.STAGE.gpus)"
        ) from error


@contextmanager
def memory_for(what: str) -> Iterator[None]:
    """Inside the block a MemoryError becomes a ValueError that names what did not fit: no smaller batch would help."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(
            f"the machine's memory does not hold {what}: give the step more (site.stages.STAGE.memory_gb on SLURM) or use a larger one"
        ) from error


def peak_flops(recipe: Recipe, *, device: str) -> float:
    """FLOP/s of bf16 that all ranks together have at most; 0 where MFU says nothing: a CPU, float32, a GPU that we do not know."""
    from olmo_core.distributed.utils import get_world_size

    if device != "cuda" or recipe.precision != "bf16":
        return 0.0
    import torch

    name = torch.cuda.get_device_name().lower().replace("-", " ").split()
    known = (rate.flops for kind, rate in DEVICES.items() if kind.lower() in name)
    return float(get_world_size() * next(known, 0.0))


def words(documents: Mapping[str, Sequence[int]], file: Path) -> str:
    """Documents by corpus in words, the first of each; all of them are written to a file."""
    write_atomically(file, json.dumps(documents))
    listed = []
    for name, numbers in documents.items():
        more = f" and {len(numbers) - MOST_NAMES} more" if len(numbers) > MOST_NAMES else ""
        listed.append(f"documents {', '.join(map(str, numbers[:MOST_NAMES]))}{more} of {name}")
    return f"{'; '.join(listed)} (counted from 0; all are in {file})"
