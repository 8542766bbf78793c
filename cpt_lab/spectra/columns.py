"""All measures of one family for every block of a scope: a function of stored decompositions, which reads no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from cpt_lab.architecture import Role
from cpt_lab.execution import Execution
from cpt_lab.specs import SpectralColumns, SpectralPart, key
from cpt_lab.spectra import svsm
from cpt_lab.spectra.blocks import block_seeds, count_in, heads_in, roles_in, size_in
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.measures import Spectrum
from cpt_lab.spectra.pairs import Agreement
from cpt_lab.spectra.parts import FILE
from cpt_lab.store import Workspace

if TYPE_CHECKING:
    Products = Mapping[str, Path]  # of finished specs, by key

COLUMNS = "columns.parquet"
PLACE = ("layer", "role", "head")  # of a row


class Part(NamedTuple):
    """A stored part and where it lies."""

    spec: SpectralPart
    folder: Path
    tensors: Mapping[str, Tensor]

    def of(self, role: Role, name: str) -> Tensor:
        """A tensor of a role; ValueError if the part has none, which another version made."""
        if f"{role}.{name}" not in self.tensors:
            raise ValueError(f"{self.folder / FILE} holds no {role}.{name}: {remade(self.folder)}")
        return self.tensors[f"{role}.{name}"]


def build_columns(spec: SpectralColumns, products: Products, work: Workspace, how: Execution) -> None:
    """Write columns.parquet: layer, role, head and a column per measure of the family, layers in order.

    Each layer is the work of one thread, so that bits do not depend on their number, and is kept in scratch: a bootstrap of hours goes on
    where it was. ValueError for parts of another version.
    """
    layers, rows = range(spec.checkpoint.shape.num_layers), count_in(spec.scope, spec.checkpoint.shape)
    work.scratch.mkdir(parents=True, exist_ok=True)
    pool, frames = ThreadPoolExecutor(how.threads, initializer=torch.set_num_threads, initargs=(1,)), []
    try:
        for done, frame in enumerate(pool.map(lambda layer: _kept(spec, layer, products, work.scratch), layers), start=1):
            frames.append(frame)
            work.progress(rows * done, rows * len(layers), "matrices")
    finally:
        pool.shutdown(cancel_futures=True)  # who is told to stop waits for the layers in hand only
    pd.concat(frames, ignore_index=True).to_parquet(work.product / COLUMNS, index=False)


def read_part(spec: SpectralPart, products: Products) -> Part:
    """A finished part, whole: some megabytes."""
    from safetensors.torch import load_file

    folder = products[key(spec)]
    return Part(spec, folder, load_file(folder / FILE))


def remade(product: Path) -> str:
    """What to do about a product of another version."""
    return f"another version of this code made it; remove the folder {product.parent} and run the command again"


def spectrum(part: Part, role: Role, null: Part | None = None) -> Spectrum:
    """The spectra of a role's blocks from a part of values; ValueError if it has other numbers of values than the model."""
    scope, shape = part.spec.scope, part.spec.checkpoint.shape
    columns, rows = sorted(size_in(scope, shape, role))
    values, expected = part.of(role, "values"), (len(heads_in(scope, shape, role)), columns)
    if tuple(values.shape) != expected:
        raise ValueError(f"{part.folder / FILE} holds {role}.values of {tuple(values.shape)} and not {expected}: {remade(part.folder)}")
    return Spectrum(
        values=values,
        rows=rows,
        columns=columns,
        eps=float(part.of(role, "eps")),
        std=part.of(role, "std"),
        mean=part.of(role, "mean"),
        null=None if null is None else null.of(role, "values"),
        stored=part.of(role, "stored"),
    )


def agreement(part: Part, role: Role) -> Agreement:
    """How a role's blocks of two checkpoints agree, from a part of a pair."""
    residual_size, head_size = size_in(part.spec.scope, part.spec.checkpoint.shape, role)
    tensors = {field.name: part.of(role, field.name) for field in fields(Agreement) if not field.name.endswith("_size")}
    return Agreement(**tensors, residual_size=residual_size, head_size=head_size)


# ------------------------------------------------------------------------------------------------------------ one layer


def _kept(spec: SpectralColumns, layer: int, products: Products, scratch: Path) -> pd.DataFrame:
    """The rows of a layer, from an earlier attempt if there are any."""
    file = scratch / f"layer{layer}.parquet"
    if not file.exists():
        _write(_of_layer(spec, layer, products), file)
    return pd.read_parquet(file)


def _of_layer(spec: SpectralColumns, layer: int, products: Products) -> pd.DataFrame:
    parts = [read_part(part, products) for part in spec.needs() if part.layer == layer]
    shape = spec.checkpoint.shape
    frames = []
    for role in roles_in(spec.scope, shape):
        heads = heads_in(spec.scope, shape, role)
        source = SOURCES.get(spec.family, _of_values)(parts, role)
        found = FAMILIES[spec.family].columns(source, spec.measures, **_options(spec, layer, role, heads))
        columns = {name: values.double().reshape(-1).tolist() for name, values in found.items()}
        frames.append(pd.DataFrame({"layer": layer, "role": role, "head": heads, **columns}))
    return pd.concat(frames, ignore_index=True)


def _of_values(parts: Sequence[Part], role: Role) -> Spectrum:
    return spectrum(parts[0], role, parts[1] if len(parts) > 1 else None)


def _of_pair(parts: Sequence[Part], role: Role) -> Agreement:
    return agreement(parts[0], role)


def _of_both(parts: Sequence[Part], role: Role) -> svsm.Spectra:
    tuned, base = parts
    return svsm.Spectra(tuned=spectrum(tuned, role), base=spectrum(base, role))


SOURCES: dict[str, Callable[[Sequence[Part], Role], Any]] = {  # what a family's measures are of; all others are of values
    "agreement": _of_pair,
    "rotation": _of_pair,
    "svsm": _of_both,
}


def _options(spec: SpectralColumns, layer: int, role: Role, heads: Sequence[int]) -> dict[str, Any]:
    """The keywords of the family's `fit`."""
    given = {"min_tail": spec.min_tail, "ks": spec.ks, "null": spec.null_model, "samples": spec.samples}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if spec.samples is not None:
        assert spec.seed is not None  # the table says so
        chosen["seeds"] = block_seeds(spec.seed, layer, role, heads)
    return chosen


def _write(frame: pd.DataFrame, file: Path) -> None:
    """Whole or not at all: what lies in scratch may be that of a worker that died."""
    beside = file.with_suffix(".part")
    frame.to_parquet(beside, index=False)
    beside.replace(file)
