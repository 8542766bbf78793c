"""The table of a checkpoint, a delta or a pair, put together from the columns of its families; and its long form, a row per vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cpt_lab.architecture import ROLES
from cpt_lab.specs import Spectra, SpectralColumns, SpectralPart, key
from cpt_lab.spectra.blocks import WHOLE, heads_in, roles_in
from cpt_lab.spectra.columns import COLUMNS, PLACE, read_part, remade
from cpt_lab.store import Workspace

if TYPE_CHECKING:
    from cpt_lab.spectra.columns import Products

TABLE, INDICES = "table.parquet", "indices.parquet"
PER_VECTOR = {  # of a pair: what a part holds per vector -> its column
    "residual_max": "agreement_residual_max",
    "residual_diagonal": "agreement_residual_diagonal",
    "head_max": "agreement_head_max",
    "head_diagonal": "agreement_head_diagonal",
}


def build_table(spec: Spectra, products: Products, work: Workspace) -> None:
    """Write table.parquet: checkpoint, against (keys), layer, role, head, and a column per measure in the order of the spec.

    `head` counts query heads for q and o, key-value heads for k and v, and is -1 for the whole matrix, which comes after its heads. With
    `indices` also indices.parquet (see `long_form`). ValueError for stored columns or parts of another version.
    """
    scopes = [_of_scope(spec, scope, products) for scope in spec.scopes]
    table = _in_order(spec, pd.concat(scopes, ignore_index=True))
    against = None if spec.against is None else key(spec.against)
    table.insert(0, "checkpoint", key(spec.checkpoint))
    table.insert(1, "against", pd.Series([against] * len(table), dtype=object))
    table[["checkpoint", "against", *PLACE, *spec.measures]].to_parquet(work.product / TABLE, index=False)
    if spec.indices:
        long_form(spec, products).to_parquet(work.product / INDICES, index=False)


def long_form(spec: Spectra, products: Products) -> pd.DataFrame:
    """A row per singular value: layer, role, head, index (0 is the largest), singular_value, and what else was decomposed for the table.

    null_value is that of the matrix with its entries permuted; against_value is the base's own, and agreements are those of its vector of
    this index. Numbers are float32: they are for violins and jitter, the table's measures are made of float64.
    """
    found: dict[tuple[int, str], dict[str, SpectralPart]] = {}
    for part in spec.parts():
        alone = spec.against is not None and part.against is None
        found.setdefault((part.layer, part.scope), {})["against" if alone else part.of] = part
    frames = [frame for together in found.values() for frame in _of_vectors(together, products)]
    return _in_order(spec, pd.concat(frames, ignore_index=True))


def _of_scope(spec: Spectra, scope: str, products: Products) -> pd.DataFrame:
    """The columns of all families, side by side."""
    frames = [_columns(columns, products) for columns in spec.columns() if columns.scope == scope]
    for frame in frames:
        assert frame[list(PLACE)].equals(frames[0][list(PLACE)]), "every family has a row per block, in one order"
    return pd.concat([frames[0][list(PLACE)], *(frame.drop(columns=list(PLACE)) for frame in frames)], axis=1)


def _columns(spec: SpectralColumns, products: Products) -> pd.DataFrame:
    product = products[key(spec)]
    frame = pd.read_parquet(product / COLUMNS)
    expected = [*PLACE, *spec.measures]
    if list(frame.columns) != expected:
        different = sorted(set(expected) ^ set(frame.columns))
        raise ValueError(
            f"{product / COLUMNS} does not have the columns of {spec.family} ({', '.join(different) or 'their order'}): {remade(product)}"
        )
    return frame


def _of_vectors(parts: dict[str, SpectralPart], products: Products) -> Iterator[pd.DataFrame]:
    """The rows of a layer's scope, role by role."""
    stored = {of: read_part(part, products) for of, part in parts.items()}
    part = parts["values"]
    for role in roles_in(part.scope, part.checkpoint.shape):
        heads = heads_in(part.scope, part.checkpoint.shape, role)
        values = stored["values"].of(role, "values")
        columns = {"singular_value": values}
        if "null" in stored:
            columns["null_value"] = stored["null"].of(role, "values")
        if "pair" in stored:
            columns["against_value"] = stored["against"].of(role, "values")
            columns |= {column: stored["pair"].of(role, name) for name, column in PER_VECTOR.items()}
        place = {"layer": part.layer, "role": role, "head": np.repeat(heads, values.shape[-1])}
        index = np.tile(np.arange(values.shape[-1], dtype=np.int32), len(heads))
        yield pd.DataFrame({**place, "index": index, **{name: column.float().reshape(-1).numpy() for name, column in columns.items()}})


def _in_order(spec: Spectra, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the roles that are asked for: by layer, role and head, whole matrices after their heads."""
    wanted = ROLES if spec.roles is None else spec.roles
    kept = rows[rows["role"].isin(wanted)]
    place = pd.DataFrame(
        {
            "layer": kept["layer"],
            "role": kept["role"].map({role: turn for turn, role in enumerate(ROLES)}),
            "head": kept["head"].where(kept["head"] != WHOLE, np.iinfo(np.int64).max),
        }
    )
    return kept.loc[place.sort_values(list(place.columns), kind="stable").index].reset_index(drop=True)
