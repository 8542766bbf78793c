"""Pictures of how singular vectors turned: similarity of either side, their difference, and I_orth (T eq. 5 to 7), for single matrices."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cpt_lab.architecture import ATTENTION_ROLES, Role
from cpt_lab.execution import Execution
from cpt_lab.specs import Rotations, Scope, SpectralPart, key
from cpt_lab.spectra import decompose
from cpt_lab.spectra.parts import Opened, read_blocks
from cpt_lab.spectra.rotation import Overlaps, together
from cpt_lab.store import Workspace
from cpt_lab.weights import check_same_shapes, open_weights

if TYPE_CHECKING:
    Products = Mapping[str, Path]  # of finished specs, by key

TABLE = "table.parquet"
CORNER, BLOCKS = "corner", "blocks"


def build_rotations(spec: Rotations, products: Products, work: Workspace, how: Execution) -> None:
    """Write table.parquet: layer, role, part, row, column, similarity_residual, similarity_head, difference, orthogonality.

    Rows are vectors of `against`, columns those of `checkpoint`, by falling singular value; of I_orth both are those of `checkpoint`. The
    part `corner` has the entries of the first vectors, the orthogonality with its sign; the part `blocks` the means of absolute values
    over blocks of the whole matrix. nan: vectors without a singular value. ValueError for values that are not finite and for different
    shapes.
    """
    opened = {
        name: Opened(f"{one.label()} ({products[key(one)]})", open_weights(products[key(one)]))
        for name, one in (("tuned", spec.checkpoint), ("base", spec.against))
    }
    device, frames = how.on_device(), []
    found = decompose.in_threads(lambda place: _of_matrix(spec, *place, opened, device), spec.shown, how.threads if device == "cpu" else 1)
    for frame in found:
        frames.append(frame)
        work.progress(len(frames), len(spec.shown), "matrices")
    pd.concat(frames, ignore_index=True).to_parquet(work.product / TABLE, index=False)


def pictures(overlaps: Overlaps) -> dict[str, Tensor]:
    """|Q_1|, |Q_2|, ||Q_1| - |Q_2|| and I_orth (k, k) of one matrix, by the names of their columns."""
    residual, head = (overlap.abs() for overlap in overlaps)
    return {
        "similarity_residual": residual,
        "similarity_head": head,
        "difference": (residual - head).abs(),
        "orthogonality": together(overlaps),
    }


def averaged(matrix: Tensor, count: int) -> Tensor:
    """Means over count x count blocks of entries, blocks of one size but for rounding; smaller matrices are as they are."""
    bounds = torch.linspace(0, len(matrix), min(count, len(matrix)) + 1).round().long().tolist()
    rows = [torch.stack([block.nanmean() for block in _split(row, bounds, 1)]) for row in _split(matrix, bounds, 0)]
    return torch.stack(rows)


def _of_matrix(spec: Rotations, layer: int, role: Role, opened: Mapping[str, Opened], device: str) -> pd.DataFrame:
    scope: Scope = "attention" if role in ATTENTION_ROLES else "mlp"
    sides = ((spec.checkpoint, opened["tuned"]), (spec.against, opened["base"]))
    read = [read_blocks(SpectralPart(checkpoint=one, layer=layer, scope=scope, of="values"), role, source).values for one, source in sides]
    check_same_shapes({role: read[0]}, {role: read[1]}, names=(opened["tuned"].name, opened["base"].name))
    tuned, base = (values.to(device) for values in read)
    whole = pictures(Overlaps(*(side[0].cpu() for side in decompose.overlaps(base, tuned))))
    corner = {name: picture[: spec.corner, : spec.corner] for name, picture in whole.items()}
    blocks = {name: averaged(picture.abs(), spec.blocks) for name, picture in whole.items()}
    return pd.concat([_rows(layer, role, CORNER, corner), _rows(layer, role, BLOCKS, blocks)], ignore_index=True)


def _rows(layer: int, role: Role, part: str, parts: Mapping[str, Tensor]) -> pd.DataFrame:
    size = len(next(iter(parts.values())))
    row, column = (place.ravel() for place in np.indices((size, size), dtype=np.int32))
    values = {name: picture.float().reshape(-1).numpy() for name, picture in parts.items()}
    return pd.DataFrame({"layer": layer, "role": role, "part": part, "row": row, "column": column, **values})


def _split(matrix: Tensor, bounds: list[int], axis: int) -> list[Tensor]:
    return [matrix.narrow(axis, start, stop - start) for start, stop in pairwise(bounds)]
