"""How singular vectors turned in single matrices: similarity of both sides, their difference, and I_orth (T eq. 5 to 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.captions import short
from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.spectral import distinguished, facets_of, role_text
from cpt_lab.specs import Rotations, key

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Found, Results

SHOWS = "for single matrices: similarity of the vectors of both sides, their difference, and the orthogonality matrix"
PAPERS = ("T figure 3a", "T figure 10", "T figure 11", "T figure 12", "T figure 13", "T figure 14")
NEEDS = "similarity matrices (target=rotations)"
PARTS = ("corner", "blocks")
TITLES = {  # column -> what it is, and what its colours count
    "similarity_residual": ("residual side", "|u_base . u_tuned|"),
    "similarity_head": ("head side", "|v_base . v_tuned|"),
    "difference": ("difference", "| |u . u| - |v . v| |"),
    "orthogonality": ("I_orth", "Q_1^T Q_2"),
}


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per role, a row of four maps per pair of checkpoints and layer."""
    if settings["part"] not in PARTS:
        raise ValueError(f"part={settings['part']}: choose corner (the first vectors, one by one) or blocks (all of them, averaged)")
    found = results.of_kind(Rotations)
    if not found:
        raise ValueError(f"study {results.name!r} has no finished similarity matrices for this figure: it needs {NEEDS}")
    labels = distinguished([_facets(one.spec) for one in found])
    tables = [_read(one, settings["part"]) for one in found]
    there = list(dict.fromkeys(str(role) for table in tables for role in table["role"]))
    roles = [role for role in there if settings["roles"] is None or role in settings["roles"]]
    if not roles:
        raise ValueError(f"none of the roles {', '.join(settings['roles'])} was kept: choose some of {', '.join(there)}")
    return [_drawing(role, labels, tables, found, settings["part"]) for role in roles]


def cells(table: pd.DataFrame, layer: int, role: str, column: str) -> NDArray[np.float64]:
    """One matrix: rows are vectors of the base, columns those of tuned, the largest singular value first."""
    rows = table[(table["layer"] == layer) & (table["role"] == role)]
    return rows.pivot(index="row", columns="column", values=column).to_numpy(np.float64)


def _drawing(role: str, labels: list[str], tables: list[pd.DataFrame], found: list[Found[Rotations]], part: str) -> Drawing:
    rows = tuple(
        tuple(_panel(cells(table, int(layer), role, column), column, f"{label}, layer {layer}", part) for column in TITLES)
        for label, table in zip(labels, tables, strict=True)
        for layer in table.loc[table["role"] == role, "layer"].unique()
    )
    name, title = f"similarity_matrices_{role}", f"How the singular vectors of {role_text(role)} turned"
    sizes = {one.spec.corner if part == "corner" else one.spec.blocks for one in found}
    what = (
        f"the first {'/'.join(map(str, sorted(sizes)))} vectors, one by one; signs of entries of I_orth off its diagonal are arbitrary"
        if part == "corner"
        else f"all vectors, absolute values averaged over {'/'.join(map(str, sorted(sizes)))} x as many blocks"
    )
    of = "; ".join(f"{label} ({short(key(one.spec))})" for label, one in zip(labels, found, strict=True))
    axes = "Rows: vectors of the base by falling singular value, of I_orth of the tuned model; columns: of the tuned model"
    said = f"{axes}; {what}. White: no singular value. {of}."
    return Drawing(name, title, said, rows, legend=False)


def _panel(found: NDArray[np.float64], column: str, label: str, part: str) -> Panel:
    title, counts = TITLES[column]
    signed = column == "orthogonality" and part == "corner"
    heat = Heat(found, label=counts, diverging=signed, limits=(-1.0, 1.0) if signed else (0.0, 1.0), downwards=True)
    rows = "vector of tuned" if column == "orthogonality" else "vector of base"
    return Panel((heat,), f"{label}: {title}", Axis("vector of tuned"), Axis(rows))


def _read(one: Found[Rotations], part: str) -> pd.DataFrame:
    import pandas as pd

    table = pd.read_parquet(one.product / "table.parquet")
    return table[table["part"] == part]


def _facets(spec: Rotations) -> dict[str, str]:
    return {**facets_of(spec.checkpoint), "against": "against " + " ".join(facets_of(spec.against).values())}
