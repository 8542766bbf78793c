"""The factors by which training scaled singular values, over all layers, and what they are rounded to (T tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Cell, Sheet, Values
from analysis.scalings import factors, principal
from analysis.spectral import Named, chosen_roles, role_text, sources, tables

if TYPE_CHECKING:
    from analysis.results import Results

SHOWS = "mean and deviation of the factors by which training scaled singular values, over all layers, and alpha' that they round to"
PAPERS = ("T table 3", "T table 4")
NEEDS = "tables of pairs of whole matrices (target=spectra spectra=post_training; see experiments post_training_MODEL)"


def build(results: Results, settings: Mapping[str, Any]) -> list[Sheet]:
    """A row per pair of checkpoints, a column per role: once the factors, once alpha'."""
    found = tables(results, kind="deltas", measures=["svsm_mean"], needs=NEEDS)
    roles = chosen_roles(settings["roles"], found)
    pooled = {one.label: [pool(factors(results, one, role)) for role in roles] for one in found}
    columns = ("tuned against base", *map(role_text, roles))
    means = tuple((label, tuple(Cell(mean, deviation, 4) for mean, deviation in row)) for label, row in pooled.items())
    rounded = tuple((label, tuple(_alpha(mean) for mean, _ in row)) for label, row in pooled.items())
    return [
        Sheet("svsm_table", "Factors of singular values over all layers", _caption(found, "mean ± standard deviation"), columns, means),
        Sheet("alpha_table", "alpha': the factors rounded to 0.1", _caption(found, "mean, rounded to one digit"), columns, rounded),
    ]


def pool(found: Values) -> tuple[float, float]:
    """Mean and standard deviation (ddof 0) of the factors of the largest 90 % of the values of all layers, of those that there are."""
    known = principal(found)
    known = known[np.isfinite(known)]
    return (float(known.mean()), float(known.std())) if len(known) else (float("nan"), float("nan"))


def _alpha(mean: float) -> Cell:
    return Cell(round(mean, 1) if np.isfinite(mean) else None, digits=1, note=f"of {mean:.4f}")


def _caption(found: Sequence[Named], what: str) -> str:
    return f"s_tuned,i / s_base,i of the largest 90 % of the singular values of all layers: {what}. {sources(found)}."
