"""A table of spectral measures: every head's q, k, v, o blocks and every matrix of a checkpoint, or of its delta to another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from cpt_lab.architecture import ATTENTION_ROLES, ROLES, Role, Slice, matrix, num_blocks
from cpt_lab.names import unknown
from cpt_lab.patch import narrow
from cpt_lab.specs import ModelShape, Spectra, key
from cpt_lab.spectra.measures import MEASURES, spectrum
from cpt_lab.store import Workspace
from cpt_lab.weights import check_finite, check_same_shapes, open_weights

if TYPE_CHECKING:
    from cpt_lab.weights import Weights

WHOLE = -1  # in the column `head`: the whole matrix
Rows = list[dict[str, str | int | float | None]]


class _Opened(NamedTuple):
    name: str
    weights: Weights


def build_table(spec: Spectra, *, checkpoint: Path, against: Path | None, work: Workspace) -> None:
    """Write table.parquet: checkpoint, against (keys), layer, role, head, and a column per measure.

    `head` counts query heads for q and o, key-value heads for k and v, and is -1 for the whole matrix. ValueError for an unknown measure,
    for checkpoints of different shapes, and for values that are not finite.
    """
    for name in spec.measures:
        if name not in MEASURES:
            raise ValueError(unknown("spectral measure", name, MEASURES))
    opened = [_Opened(f"{spec.checkpoint.label()} ({checkpoint})", open_weights(checkpoint))]
    identity: dict[str, str | None] = {"checkpoint": key(spec.checkpoint), "against": None}
    if spec.against is not None and against is not None:
        opened.append(_Opened(f"{spec.against.label()} ({against})", open_weights(against)))
        check_same_shapes(opened[0].weights, opened[1].weights, names=(opened[0].name, opened[1].name))
        identity["against"] = key(spec.against)
    rows: Rows = []
    matrices = [(layer, role) for layer in range(spec.checkpoint.shape.num_layers) for role in ROLES]
    for done, (layer, role) in enumerate(matrices, start=1):
        measured = _measure(opened, spec.checkpoint.shape, layer, role, measures=spec.measures)
        rows += [{**identity, "layer": layer, "role": role, **row} for row in measured]
        work.progress(done, len(matrices), "matrices")
    pd.DataFrame(rows).to_parquet(work.product / "table.parquet", index=False)


def _measure(
    opened: list[_Opened], shape: ModelShape, layer: int, role: Role, *, measures: tuple[str, ...]
) -> Iterator[dict[str, int | float]]:
    """The rows of one matrix: its heads if it has any, then the whole."""
    slices = matrix(shape, layer, role)
    whole, stored = _values(opened, slices)
    blocks = [(range(WHOLE, WHOLE + 1), whole.unsqueeze(0))]
    if role in ATTENTION_ROLES:
        count = num_blocks(shape, role)
        blocks.insert(0, (range(count), torch.stack(whole.chunk(count, dim=slices[0].axis))))
    for heads, batch in blocks:
        found = spectrum(batch, stored)
        columns = {name: MEASURES[name](found).tolist() for name in measures}
        for index, head in enumerate(heads):
            yield {"head": head, **{name: column[index] for name, column in columns.items()}}


def _values(opened: list[_Opened], slices: tuple[Slice, ...]) -> tuple[torch.Tensor, torch.dtype]:
    """The matrix, or the first checkpoint's minus the second's, in float64; and the dtype that the first is stored in."""
    read = []
    for name, weights in opened:
        parts = [narrow(weights, part) for part in slices]
        for part, values in zip(slices, parts, strict=True):
            check_finite({part.parameter: values}, name)
        read.append(torch.cat(parts, dim=slices[0].axis))
    first, *rest = (values.double() for values in read)
    return first - rest[0] if rest else first, read[0].dtype
