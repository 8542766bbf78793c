"""The criteria: what gives units their scores. One function and one row of CRITERIA each.

Scores are a grid with a row per layer and a column per unit of it: its heads, its matrices by role, or the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from cpt_lab.architecture import ATTENTION_ROLES, AttentionRole, Role, group, num_blocks
from cpt_lab.orderings import files, greedy
from cpt_lab.specs import ModelShape, Ranking, UnitKind

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Scores = np.ndarray[tuple[int, int], np.dtype[np.float64]]  # (num_layers, units of a layer)
else:
    Scores = "Scores"

DELTA_MEASURES = ("frobenius_norm", "spectral_norm", "stable_rank", "effective_rank")  # of every delta, so that criteria share tables
FIT_MEASURES = ("pl_alpha", "pl_ks", "pl_tail")
PAIR_MEASURES = ("agreement_residual_diagonal", "agreement_residual_max")


@dataclass(frozen=True)
class Table:
    """A table that a criterion reads: of which of the study's checkpoints, against the base or by itself, and with which measures."""

    of: Literal["tuned", "reference", "base"]
    against_base: bool
    measures: tuple[str, ...]


@dataclass(frozen=True)
class Criterion:
    """What gives units their scores.

    `reads` names the tables that `score` takes after the ranking, in order. `settings` must be chosen for it and `options` may be; `units`
    are what it can rank.
    """

    score: Callable[..., Scores]
    reads: tuple[Table, ...] = ()
    settings: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    units: tuple[UnitKind, ...] = ("head", "matrix", "layer")


def scaled_norm_diff(ranking: Ranking, tuned: pd.DataFrame, reference: pd.DataFrame) -> Scores:
    """scale01(||tuned - base||_F) - scale01(||reference - base||_F), min-max over all units of the model (P eq. 1)."""
    return scale01(delta_norm(ranking, tuned)) - scale01(delta_norm(ranking, reference))


def delta_norm(ranking: Ranking, tuned: pd.DataFrame) -> Scores:
    """||tuned - base||_F of each unit: of a head the norm of its q, k, v, o blocks together, sqrt(sum of squares over the roles).

    P is silent on how the four are combined. Query heads that share k and v count them in full, each.
    """
    import numpy as np

    return cast("Scores", np.sqrt(np.square(blocks(ranking, tuned, "frobenius_norm")).sum(axis=-1)))


def agreement(ranking: Ranking, tuned: pd.DataFrame) -> Scores:
    """How well singular vectors of the base are kept in tuned: the mean row maximum of |U_base^T U_tuned| (P eq. 7), mean over the roles.

    U are the vectors in the residual stream: P's left ones of a head's block (eq. 15).
    """
    return mean_of(ranking, tuned, "agreement_residual_max")


def agreement_diff(ranking: Ranking, tuned: pd.DataFrame, reference: pd.DataFrame) -> Scores:
    """Agreement of reference with the base minus that of tuned: high where this domain turned the vectors more than text does."""
    return agreement(ranking, reference) - agreement(ranking, tuned)


def pl_ks(ranking: Ranking, base: pd.DataFrame) -> Scores:
    """Distance of the base's eigenvalues to their power law, mean over the roles; nan where a block has too few values to fit."""
    return mean_of(ranking, base, "pl_ks")


def pl_alpha(ranking: Ranking, base: pd.DataFrame) -> Scores:
    """Exponent of the power law of the base's eigenvalues, mean over the roles; nan where a block has too few values to fit."""
    return mean_of(ranking, base, "pl_alpha")


def spectral(ranking: Ranking, table: pd.DataFrame) -> Scores:
    """Any spectral measure, mean over the roles."""
    assert ranking.column is not None  # the settings say so
    return mean_of(ranking, table, ranking.column)


def random(ranking: Ranking) -> Scores:
    """Places in a random permutation drawn from the ranking's seed: descending is ascending backwards."""
    import numpy as np

    places = np.random.default_rng(ranking.seed).permutation(len(ranking.units))
    return places.reshape(ranking.shape.num_layers, len(ranking.parts)).astype(np.float64)


TUNED_DELTA = Table("tuned", True, DELTA_MEASURES)
REFERENCE_DELTA = Table("reference", True, DELTA_MEASURES)
TUNED_PAIR = Table("tuned", True, PAIR_MEASURES)
REFERENCE_PAIR = Table("reference", True, PAIR_MEASURES)
BASE_FITS = Table("base", False, FIT_MEASURES)

CRITERIA: dict[str, Criterion] = {
    "scaled_norm_diff": Criterion(scaled_norm_diff, reads=(TUNED_DELTA, REFERENCE_DELTA)),
    "delta_norm": Criterion(delta_norm, reads=(TUNED_DELTA,)),
    "agreement": Criterion(agreement, reads=(TUNED_PAIR,)),
    "agreement_diff": Criterion(agreement_diff, reads=(TUNED_PAIR, REFERENCE_PAIR)),
    "pl_ks": Criterion(pl_ks, reads=(BASE_FITS,)),
    "pl_alpha": Criterion(pl_alpha, reads=(BASE_FITS,)),
    "spectral": Criterion(spectral, settings=("column", "of")),  # `of` says what it reads
    "greedy": Criterion(greedy.gains, settings=("protocol",), options=("metric", "kv")),
    "ablation": Criterion(greedy.losses, settings=("protocol",), options=("metric",), units=("layer",)),
    "from_file": Criterion(files.scores, settings=("file",)),
    "random": Criterion(random, settings=("seed",)),
}


# ----------------------------------------------------------------------------------------------------- tables to scores


def mean_of(ranking: Ranking, table: pd.DataFrame, measure: str) -> Scores:
    """The mean of a measure over the blocks of each unit; nan if one of them is."""
    return cast("Scores", blocks(ranking, table, measure).mean(axis=-1))


def blocks(ranking: Ranking, table: pd.DataFrame, measure: str) -> np.ndarray[tuple[int, int, int], np.dtype[np.float64]]:
    """A measure as (num_layers, units, blocks of a unit): the roles of a head, or a matrix itself; of layers, their heads."""
    import numpy as np

    if ranking.unit == "matrix":
        return np.stack([per_matrix(table, role, measure) for role in ranking.roles], axis=1)[..., None]
    heads = [per_head(table, ranking.shape, role, measure) for role in ATTENTION_ROLES if role in ranking.roles]
    return np.stack(heads, axis=-1)


def per_head(table: pd.DataFrame, shape: ModelShape, role: AttentionRole, measure: str) -> Scores:
    """A measure of one role's blocks as (num_layers, num_heads); a query head has the k and v of its group."""
    import numpy as np

    rows = table[(table["role"] == role) & (table["head"] >= 0)].sort_values(["layer", "head"])
    values = rows[measure].to_numpy(np.float64).reshape(shape.num_layers, num_blocks(shape, role))
    if num_blocks(shape, role) == shape.num_heads:
        return values
    return values[:, [group(shape, head) for head in range(shape.num_heads)]]


def per_matrix(table: pd.DataFrame, role: Role, measure: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A measure of one role's whole matrices, by layer."""
    import numpy as np

    return table[(table["role"] == role) & (table["head"] < 0)].sort_values("layer")[measure].to_numpy(np.float64)


def scale01(values: Scores) -> Scores:
    """(x - min) / (max - min) over all units; zeros if all are equal (P divides by zero there)."""
    import numpy as np

    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
