"""The decompositions of one layer: a role's matrix after another is read, decomposed and forgotten; what is left are vectors of numbers.

A part holds, per role, float64 tensors by names such as `q.values`; `blocks` counts the heads of the role, or is 1 for whole matrices:

    values      (blocks, n) singular values, descending, of null the same of the matrices with their entries permuted
    mean, std   (blocks,) of the entries; stored (blocks,) root mean square of the numbers as stored, of a delta of both sides' together
    eps         () machine epsilon of the dtype that the matrices are stored in, the larger of two
    of a pair   every field of `pairs.Agreement` that is a tensor

What stands for a block depends on nothing but the block: not on other roles, threads, workers or the order of work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cpt_lab.architecture import Role, Slice, matrix
from cpt_lab.edits import narrow
from cpt_lab.execution import Execution
from cpt_lab.specs import SpectralPart
from cpt_lab.spectra import decompose
from cpt_lab.spectra.blocks import block_seeds, count_in, heads_in, roles_in
from cpt_lab.store import Workspace
from cpt_lab.weights import check_finite, check_same_shapes, open_weights

if TYPE_CHECKING:
    from cpt_lab.weights import Weights

FILE = "part.safetensors"
AT_ONCE = 2**16  # numbers that stay in the cache


class Opened(NamedTuple):
    """A checkpoint that is read, and what it is called where something is wrong with it."""

    name: str
    weights: Weights


class Blocks(NamedTuple):
    """A role's matrices in one layer of one checkpoint."""

    values: Tensor  # (blocks, residual, head), as stored
    eps: float  # of the dtype that they are stored in


def build_part(spec: SpectralPart, *, checkpoint: Path, against: Path | None, work: Workspace, how: Execution) -> None:
    """Write part.safetensors; ValueError for checkpoints of different shapes and for values that are not finite."""
    from safetensors.torch import save_file

    opened = [Opened(f"{spec.checkpoint.label()} ({checkpoint})", open_weights(checkpoint))]
    if spec.against is not None and against is not None:
        opened.append(Opened(f"{spec.against.label()} ({against})", open_weights(against)))
    save_file(decomposed(spec, opened, work=work, how=how), work.product / FILE)


def decomposed(spec: SpectralPart, opened: Sequence[Opened], *, work: Workspace, how: Execution) -> dict[str, Tensor]:
    """The tensors of a part, by name."""
    found: dict[str, Tensor] = {}
    shape, started, done = spec.checkpoint.shape, time.monotonic(), 0
    wanted = roles_in(spec.scope, shape)
    # Heads are many of a role, and whole matrices one.
    at_once = how.threads if spec.scope != "heads" and how.on_device() == "cpu" else 1
    alone = how if at_once == 1 else how.model_copy(update={"threads": 1})
    parts = decompose.in_threads(lambda role: _of_role(spec, role, opened, alone), wanted, at_once)
    for role, tensors in zip(wanted, parts, strict=True):
        found |= {f"{role}.{name}": _kept(tensor) for name, tensor in tensors.items()}
        done += len(heads_in(spec.scope, shape, role))
        work.progress(done, count_in(spec.scope, shape), "matrices")
    seconds = max(time.monotonic() - started, 1e-9)
    logging.getLogger(__name__).info("%d matrices in %.2f seconds, %.1f matrices per second", done, seconds, done / seconds)
    return found


# ------------------------------------------------------------------------------------------------------------- one role


def _of_role(spec: SpectralPart, role: Role, opened: Sequence[Opened], how: Execution) -> dict[str, Tensor]:
    _check_same(matrix(spec.checkpoint.shape, spec.layer, role), opened)
    read = [read_blocks(spec, role, one) for one in opened]
    device = how.on_device()
    if spec.of == "pair":
        tuned, base = (blocks.values.to(device) for blocks in read)
        return decompose.agreements(base, tuned, threads=how.threads).tensors()
    values = read[0].values.double() - read[1].values.double() if len(read) == 2 else read[0].values
    if spec.of == "null":
        assert spec.seed is not None  # the spec says so
        seeds = block_seeds(spec.seed, spec.layer, role, heads_in(spec.scope, spec.checkpoint.shape, role))
        return {"values": decompose.permuted_values(values.to(device), seeds=seeds, threads=how.threads)}
    means = [_moment(block, 1) for block in values]
    variances = [_moment(block, 2, mean) for block, mean in zip(values, means, strict=True)]
    squares = [torch.stack([_moment(block, 2) for block in blocks.values]) for blocks in read]
    return {
        "values": decompose.values(values.to(device), threads=how.threads),
        "mean": torch.stack(means),
        "std": torch.stack(variances).sqrt(),
        "stored": torch.stack(squares).sum(0).sqrt(),
        "eps": torch.tensor(max(blocks.eps for blocks in read), dtype=torch.float64),
    }


def _moment(block: Tensor, order: int, centre: Tensor | float = 0.0) -> Tensor:
    """The mean of (entry - centre)^order, some rows at a time: to copy the whole block takes longer than all else here."""
    parts = torch.split(block, max(1, AT_ONCE // block.shape[1]))
    return torch.stack([(part.double() - centre).pow(order).sum() for part in parts]).sum() / block.numel()


def _check_same(slices: Sequence[Slice], opened: Sequence[Opened]) -> None:
    """ValueError if a parameter is not in both checkpoints with one shape. Others do not count: post-training may untie embeddings."""
    both = [{part.parameter: one.weights[part.parameter] for part in slices if part.parameter in one.weights} for one in opened]
    if len(both) == 2:
        check_same_shapes(*both, names=(opened[0].name, opened[1].name))


def _kept(tensor: Tensor) -> Tensor:
    """A tensor of its own on the CPU, as a file takes it."""
    return tensor.to("cpu", copy=True).contiguous()


def read_blocks(spec: SpectralPart, role: Role, opened: Opened) -> Blocks:
    """A role's heads, or its whole matrix, turned so that rows are of the residual stream; ValueError for what is not finite."""
    slices = matrix(spec.checkpoint.shape, spec.layer, role)
    whole = _whole(slices, opened)
    turned = whole.mT.contiguous() if slices[0].axis == 0 else whole  # in float64 there would be four times as many bytes to turn
    count = len(heads_in(spec.scope, spec.checkpoint.shape, role))
    return Blocks(turned.reshape(len(turned), count, -1).movedim(1, 0), torch.finfo(whole.dtype).eps)


def _whole(slices: Sequence[Slice], opened: Opened) -> Tensor:
    parts = [narrow(opened.weights, part) for part in slices]
    for part, values in zip(slices, parts, strict=True):
        check_finite({part.parameter: values}, opened.name)
    return torch.cat(parts, dim=slices[0].axis)
