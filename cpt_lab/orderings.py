"""Orders of the heads: a criterion gives every head a score, a direction sorts them. One function and one row of CRITERIA per criterion.

Importing this module needs neither torch nor numpy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from cpt_lab.architecture import ATTENTION_ROLES, AttentionRole, group, num_blocks
from cpt_lab.names import unknown
from cpt_lab.specs import Checkpoint, Head, ModelShape, Ranking, Spectra
from cpt_lab.store import Workspace

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    Scores = np.ndarray[tuple[int, int], np.dtype[np.float64]]  # (num_layers, num_heads)

Direction = Literal["ascending", "descending"]
DIRECTIONS: tuple[Direction, ...] = ("ascending", "descending")
DELTA_MEASURES = ("frobenius_norm", "spectral_norm", "stable_rank", "effective_rank")  # of every delta, so that criteria share tables


@dataclass(frozen=True)
class Criterion:
    """What gives heads their scores.

    `reads` names the tables that `score` takes after the ranking, in order: the deltas of "tuned" or "reference" to the base.
    """

    score: Callable[..., Scores]
    reads: tuple[Literal["tuned", "reference"], ...] = ()
    seeded: bool = False


def ranking(
    criterion: str,
    direction: str,
    *,
    tuned: Checkpoint,
    base: Checkpoint,
    reference: Checkpoint | None = None,
    seed: int | None = None,
    roles: Sequence[str] = ATTENTION_ROLES,
) -> Ranking:
    """The ranking with the tables its criterion reads, and no others; ValueError for an unknown name or something missing."""
    rule = _criterion(criterion)
    _check_choices(criterion, direction, roles=roles, seed=seed)
    checkpoints = {"tuned": tuned, "reference": reference}
    tables = []
    for name in rule.reads:
        checkpoint = checkpoints[name]
        if checkpoint is None:
            raise ValueError(
                f"criterion {criterion} compares with a {name} checkpoint and there is none: set {name}, or choose another criterion"
            )
        tables.append(Spectra(checkpoint=checkpoint, against=base, measures=DELTA_MEASURES))
    read = tuple(role for role in ATTENTION_ROLES if role in roles) if tables else ATTENTION_ROLES  # a set, in one order: one key
    return Ranking(
        criterion=criterion, direction=cast(Direction, direction), shape=tuned.shape, spectra=tuple(tables), roles=read, seed=seed
    )


def order(scores: Scores, direction: str) -> list[Head]:
    """Heads (layer, head) by their scores; equal scores by (layer, head) in both directions, scores that are nan last."""
    import numpy as np

    layers, heads = np.indices(scores.shape).reshape(2, -1)
    values = scores.ravel() if direction == "ascending" else -scores.ravel()
    ranked = np.lexsort((heads, layers, values))  # the last key counts first; nan sorts behind every number
    return [(int(layers[index]), int(heads[index])) for index in ranked]


def build_ranking(spec: Ranking, tables: list[Path], work: Workspace) -> None:
    """Write ranking.json {criterion, direction, order: [[layer, head], ...]} and scores.parquet (layer, head, score).

    `tables` are the products of `spec.spectra` in order.
    """
    import numpy as np
    import pandas as pd

    scores = _criterion(spec.criterion).score(spec, *(pd.read_parquet(table / "table.parquet") for table in tables))
    ranked = {"criterion": spec.criterion, "direction": spec.direction, "order": order(scores, spec.direction)}
    (work.product / "ranking.json").write_text(json.dumps(ranked))
    layers, heads = np.indices(scores.shape).reshape(2, -1)
    pd.DataFrame({"layer": layers, "head": heads, "score": scores.ravel()}).to_parquet(work.product / "scores.parquet", index=False)


# ------------------------------------------------------------------------------------------------------------ criteria


def scaled_norm_diff(ranking: Ranking, tuned: pd.DataFrame, reference: pd.DataFrame) -> Scores:
    """scale01(||tuned - base||_F) - scale01(||reference - base||_F), min-max over all heads of the model (P eq. 1)."""
    return scale01(delta_norm(ranking, tuned)) - scale01(delta_norm(ranking, reference))


def delta_norm(ranking: Ranking, tuned: pd.DataFrame) -> Scores:
    """||tuned - base||_F of each head: the norm of its q, k, v, o blocks together, sqrt(sum of squares over the roles).

    P is silent on how the four are combined. Query heads that share k and v count them in full, each.
    """
    import numpy as np

    squares = [per_head(tuned, ranking.shape, role, "frobenius_norm") ** 2 for role in ranking.roles]
    return cast("Scores", np.sqrt(np.sum(squares, axis=0)))


def random(ranking: Ranking) -> Scores:
    """Places in a random permutation drawn from the ranking's seed: descending is ascending backwards."""
    import numpy as np

    shape = ranking.shape
    places = np.random.default_rng(ranking.seed).permutation(shape.total_heads)
    return places.reshape(shape.num_layers, shape.num_heads).astype(np.float64)


CRITERIA: dict[str, Criterion] = {
    "scaled_norm_diff": Criterion(scaled_norm_diff, reads=("tuned", "reference")),
    "delta_norm": Criterion(delta_norm, reads=("tuned",)),
    "random": Criterion(random, seeded=True),
}


def scale01(values: Scores) -> Scores:
    """(x - min) / (max - min) over all heads; zeros if all are equal (P divides by zero there)."""
    import numpy as np

    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def per_head(table: pd.DataFrame, shape: ModelShape, role: AttentionRole, measure: str) -> Scores:
    """A measure of one role's blocks as (num_layers, num_heads); a query head has the k and v of its group."""
    import numpy as np

    rows = table[(table["role"] == role) & (table["head"] >= 0)].sort_values(["layer", "head"])
    blocks = rows[measure].to_numpy(np.float64).reshape(shape.num_layers, num_blocks(shape, role))
    if num_blocks(shape, role) == shape.num_heads:
        return blocks
    return blocks[:, [group(shape, head) for head in range(shape.num_heads)]]


# ------------------------------------------------------------------------------------------------------------- helpers


def _criterion(name: str) -> Criterion:
    if name not in CRITERIA:
        raise ValueError(unknown("criterion", name, CRITERIA))
    return CRITERIA[name]


def _check_choices(criterion: str, direction: str, *, roles: Sequence[str], seed: int | None) -> None:
    if direction not in DIRECTIONS:
        raise ValueError(unknown("direction", direction, DIRECTIONS))
    for role in roles:
        if role not in ATTENTION_ROLES:
            raise ValueError(unknown("role of a head", role, ATTENTION_ROLES))
    if not roles:
        raise ValueError(f"criterion {criterion} has no roles to look at: choose some of {', '.join(ATTENTION_ROLES)}")
    if CRITERIA[criterion].seeded and seed is None:
        raise ValueError(f"criterion {criterion} draws at random and needs a seed: set criterion.seed")
    if not CRITERIA[criterion].seeded and seed is not None:
        raise ValueError(f"criterion {criterion} draws nothing at random, got seed {seed}: leave criterion.seed at null")
