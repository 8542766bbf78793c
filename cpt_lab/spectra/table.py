"""A table of spectral measures: every head's q, k, v, o blocks and every matrix of a checkpoint, of its delta to another, or of the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch

from cpt_lab.architecture import ATTENTION_ROLES, Role, Slice, matrix, num_blocks, roles
from cpt_lab.edits import narrow
from cpt_lab.names import unknown
from cpt_lab.specs import Spectra, key
from cpt_lab.spectra.measures import MEASURES, spectrum
from cpt_lab.spectra.pairs import PAIR_MEASURES, pair
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
    for an agreement with nothing to agree with, for checkpoints of different shapes, and for values that are not finite.
    """
    _check_measures(spec)
    opened = [_Opened(f"{spec.checkpoint.label()} ({checkpoint})", open_weights(checkpoint))]
    identity: dict[str, str | None] = {"checkpoint": key(spec.checkpoint), "against": None}
    if spec.against is not None and against is not None:
        opened.append(_Opened(f"{spec.against.label()} ({against})", open_weights(against)))
        check_same_shapes(opened[0].weights, opened[1].weights, names=(opened[0].name, opened[1].name))
        identity["against"] = key(spec.against)
    rows: Rows = []
    matrices = _matrices(spec)
    for done, (layer, role) in enumerate(matrices, start=1):
        slices = matrix(spec.checkpoint.shape, layer, role)
        values, stored = _values(opened, slices)
        for heads, blocks in _blocks(spec, role, values, axis=slices[0].axis):
            columns = {name: column.tolist() for name, column in _measured(spec, blocks, stored).items()}
            for index, head in enumerate(heads):
                found = {name: column[index] for name, column in columns.items()}
                rows.append({**identity, "layer": layer, "role": role, "head": head, **found})
        work.progress(done, len(matrices), "matrices")
    pd.DataFrame(rows).to_parquet(work.product / "table.parquet", index=False)


def _check_measures(spec: Spectra) -> None:
    for name in spec.measures:
        if name not in (*MEASURES, *PAIR_MEASURES):
            raise ValueError(unknown("spectral measure", name, (*MEASURES, *PAIR_MEASURES)))
        if name in PAIR_MEASURES and spec.against is None:
            raise ValueError(f"{name} compares two checkpoints and there is one: give the other one as `against`")


def _matrices(spec: Spectra) -> list[tuple[int, Role]]:
    shape = spec.checkpoint.shape
    wanted = ATTENTION_ROLES if spec.blocks == "heads" else roles(shape)
    return [(layer, role) for layer in range(shape.num_layers) for role in wanted]


def _values(opened: list[_Opened], slices: tuple[Slice, ...]) -> tuple[list[torch.Tensor], torch.dtype]:
    """The matrix of each checkpoint in float64, and the dtype that the first is stored in."""
    read = []
    for name, weights in opened:
        parts = [narrow(weights, part) for part in slices]
        for part, values in zip(slices, parts, strict=True):
            check_finite({part.parameter: values}, name)
        read.append(torch.cat(parts, dim=slices[0].axis))
    return [values.double() for values in read], read[0].dtype


def _blocks(spec: Spectra, role: Role, values: list[torch.Tensor], *, axis: int) -> Iterator[tuple[range, list[torch.Tensor]]]:
    """The heads of a matrix, then the whole, each as a batch (blocks, residual, head) per checkpoint; `axis` is what the heads divide."""
    turned = [whole.mT if axis == 0 else whole for whole in values]
    if role in ATTENTION_ROLES:
        count = num_blocks(spec.checkpoint.shape, role)
        yield range(count), [torch.stack(whole.chunk(count, dim=1)) for whole in turned]
    if spec.blocks == "all":
        yield range(WHOLE, WHOLE + 1), [whole.unsqueeze(0) for whole in turned]


def _measured(spec: Spectra, blocks: list[torch.Tensor], stored: torch.dtype) -> dict[str, torch.Tensor]:
    """The columns of a batch, in the order of the spec: of the weights or the delta, and of the pair."""
    columns: dict[str, torch.Tensor] = {}
    if not MEASURES.keys().isdisjoint(spec.measures):
        found = spectrum(blocks[0] - blocks[1] if len(blocks) == 2 else blocks[0], stored)
        columns |= {name: MEASURES[name](found) for name in spec.measures if name in MEASURES}
    if not PAIR_MEASURES.keys().isdisjoint(spec.measures):
        both = pair(base=blocks[1], tuned=blocks[0])
        columns |= {name: PAIR_MEASURES[name](both) for name in spec.measures if name in PAIR_MEASURES}
    return {name: columns[name] for name in spec.measures}
