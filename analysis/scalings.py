"""The factors by which training scaled every singular value (T eq. 4), from the stored decompositions behind a table of spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.drawing import Values
from analysis.spectral import Named, whole
from cpt_lab.specs import SpectralColumns, key

if TYPE_CHECKING:
    from analysis.results import Results

PERCENT = 100


def factors(results: Results, one: Named, role: str) -> Values:
    """s_tuned,i / s_base,i of the whole matrix of a role, (layers, n), largest value first; nan where the base's is no more than rounding.

    ValueError if the table has no whole matrices, or its decompositions were removed from the store.
    """
    from cpt_lab.spectra import svsm  # with torch, which nothing else here needs
    from cpt_lab.spectra.columns import read_part, spectrum

    whole(one.table(), role)
    columns = _columns(one, role)
    needs = columns.needs()
    gone = [part for part in needs if not results.store.is_done(part)]
    if gone:
        raise ValueError(
            f"{len(gone)} decompositions behind {key(one.spec)} are not in the store any more: remove its folder and run it again"
        )
    products = {key(part): results.store.product(part) for part in needs}
    rows = []
    for layer in range(one.shape.num_layers):
        tuned, base = (spectrum(read_part(part, products), role) for part in needs if part.layer == layer)  # type: ignore[arg-type]
        rows.append(svsm.scalings(svsm.Spectra(tuned=tuned, base=base)).factors[0].numpy())
    return np.stack(rows).astype(np.float64)


def principal(found: Values) -> Values:
    """The factors of the largest 90 % of the values (T table 3)."""
    from cpt_lab.spectra.svsm import PRINCIPAL_PERCENT

    return found[:, : -(-PRINCIPAL_PERCENT * found.shape[1] // PERCENT)]


def _columns(one: Named, role: str) -> SpectralColumns:
    from cpt_lab.architecture import ATTENTION_ROLES

    scope = "attention" if role in ATTENTION_ROLES else "mlp"
    return next(columns for columns in one.spec.columns() if columns.family == "svsm" and columns.scope == scope)
