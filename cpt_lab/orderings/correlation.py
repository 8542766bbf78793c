"""How two criteria agree about the units of a model: rank correlation of their scores, with what chance would give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab.specs import Correlation
from cpt_lab.store import Workspace

if TYPE_CHECKING:
    import numpy as np

    Grid = np.ndarray[tuple[int, int], np.dtype[np.float64]]
    Vector = np.ndarray[tuple[int], np.dtype[np.float64]]

DRAWS = 2000
SEED = 0
FEWEST = 4  # units: three have six orders, and say nothing


def build_correlation(spec: Correlation, one: Path, other: Path, work: Workspace) -> None:
    """Write table.parquet (the units with the scores of both rankings) and correlation.json from two finished rankings.

    `spearman` over the units that both score, `interval` its 95 % bootstrap interval over the units, `p_value` the share of random
    orders that correlate at least as much, two-sided; None where a side does not tell the units apart. Units next to each other are not
    independent: read the interval as a lower bound of the uncertainty.
    """
    import numpy as np
    import pandas as pd

    frames = [pd.read_parquet(folder / "scores.parquet") for folder in (one, other)]
    units = [name for name in frames[0] if name not in ("score", "stderr")]
    table = frames[0][units].assign(one=frames[0]["score"], other=frames[1]["score"])
    left, right = (table[name].to_numpy(np.float64) for name in ("one", "other"))
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < FEWEST:
        raise ValueError(
            f"{spec.label()}: both criteria score {int(known.sum())} units, and {FEWEST} are the fewest that can be correlated: "
            "choose another criterion or a unit of which there are more"
        )
    table.to_parquet(work.product / "table.parquet", index=False)
    facts = {"units": int(known.sum()), **correlate(left[known], right[known])}
    (work.product / "correlation.json").write_text(json.dumps(facts, indent=1) + "\n")


def correlate(one: Vector, other: Vector) -> dict[str, float | list[float] | None]:
    """`spearman`, its bootstrap `interval` and the `p_value` of a permutation test, from explicit generators."""
    import numpy as np
    from scipy.stats import rankdata

    found = spearman(one, other)
    if found is None:
        return {"spearman": None, "interval": None, "p_value": None}
    generator = np.random.default_rng(SEED)
    picks = generator.integers(0, len(one), size=(DRAWS, len(one)))
    drawn = _correlations(rankdata(one[picks], axis=1), rankdata(other[picks], axis=1))
    shuffled = _correlations(rankdata(one)[None], generator.permuted(np.tile(rankdata(other), (DRAWS, 1)), axis=1))
    beyond = int((np.abs(shuffled) >= abs(found) - 1e-12).sum())
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"spearman": found, "interval": [float(low), float(high)], "p_value": (beyond + 1) / (DRAWS + 1)}


def spearman(one: Vector, other: Vector) -> float | None:
    """Correlation of the ranks, ties sharing theirs; None where one side does not tell the units apart."""
    import numpy as np
    from scipy.stats import rankdata

    left, right = rankdata(one), rankdata(other)
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(np.corrcoef(left, right)[0, 1])


def _correlations(one: Grid, other: Grid) -> Vector:
    """The correlation of every row with its counterpart; nan where one of them is constant."""
    import numpy as np

    left, right = (side - side.mean(axis=1, keepdims=True) for side in (one, other))
    spread = np.sqrt(np.square(left).sum(axis=1) * np.square(right).sum(axis=1))
    found: Vector = (left * right).sum(axis=1) / np.where(spread > 0, spread, np.nan)
    return found
