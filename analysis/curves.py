"""Curves of a rewind study: one per criterion and direction, over the fraction of units rewound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.results import STDERR
from cpt_lab.evaluation.statistics import auc

if TYPE_CHECKING:
    import pandas as pd

ENDS = (0.0, 1.0)  # where every order rewinds the same: nothing, or all
Values = NDArray[np.float64]
Place = tuple[float, float, str]  # value, standard error over documents, key of the evaluation
NOWHERE: Place = (float("nan"), float("nan"), "")


@dataclass(frozen=True)
class Curve:
    """One metric along one order; rows are seeds (one, unless the criterion is random), NaN where a point is not done."""

    criterion: str
    direction: str
    fractions: tuple[float, ...]
    values: Values  # seeds x fractions
    errors: Values  # standard errors over documents, seeds x fractions
    also: str = ""  # what else the sweep varies: "kv=never"
    keys: tuple[tuple[str, ...], ...] = ()  # of the evaluations, seeds x fractions; empty where there is no such point

    @property
    def family(self) -> str:
        return family(self.criterion, self.also)

    @property
    def label(self) -> str:
        return label(self.criterion, self.direction, self.also, seeds=len(self.values))

    @property
    def mean(self) -> Values:
        """Over the seeds that are done, per fraction; NaN where none is."""
        return np.array([finite_mean(column) for column in self.values.T])

    @property
    def spread(self) -> Values:
        """Standard deviation (n - 1) over the seeds that are done, per fraction; NaN for fewer than two."""
        return np.array([_std(column) for column in self.values.T])

    def areas(self) -> Values:
        """The area under each seed's curve (P eq. 17), in units of the metric; NaN for a curve with a gap or a single point."""
        return np.array([auc(self.fractions, row) if len(row) > 1 and np.isfinite(row).all() else np.nan for row in self.values])


def family(criterion: str, also: str) -> str:
    """What curves of one colour have in common: the criterion, and what else the sweep varies."""
    return f"{criterion}, {also}" if also else criterion


def label(criterion: str, direction: str, also: str, *, seeds: int) -> str:
    """`criterion direction` in plain words; the reverse of a random order is another random order."""
    turn = {"ascending": "", "descending": " reversed"}[direction] if criterion == "random" else f" {direction}"
    many = f" (mean of {seeds})" if seeds > 1 else ""
    return f"{family(criterion.replace('_', ' ') + turn, also)}{many}"


def curves(table: pd.DataFrame, metric: str) -> list[Curve]:
    """The curves of a `results.frame`, in the order of their first points; ends that a curve lacks are taken from the others.

    ValueError if the study has no rewound points.
    """
    rewound = table[table["fraction"].notna() & table["criterion"].notna()] if "fraction" in table else table.iloc[:0]
    if rewound.empty:
        raise ValueError(f"study {table.attrs.get('study', '')!r} has no points that rewind by a ranking: there is no curve to draw")
    others = also_varies(rewound, table.attrs["varies"])
    groups = rewound.groupby(["criterion", "direction", *others], sort=False, dropna=False)
    return [_curve(names, rows, metric, others=others, alike=rows_like(rewound, rows, others)) for names, rows in groups]


def also_varies(rewound: pd.DataFrame, varies: Sequence[str]) -> list[str]:
    """What else a sweep varies among its rewound points, of several studies the study; other points of them may vary in more."""
    own = ("criterion", "direction", "fraction")
    asked = [name for name in ("study", *varies) if name in rewound and name not in own and not name.endswith("seed")]
    return [name for name in asked if rewound[name].nunique(dropna=False) > 1]


def rows_like(table: pd.DataFrame, rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of the table that have in these columns what the given ones have."""
    same = [table[name].map(str) == str(rows[name].iloc[0]) for name in names]
    return table[np.logical_and.reduce(same)] if same else table


def finite_mean(values: Values) -> float:
    """Over what is done; NaN where nothing is."""
    done = values[np.isfinite(values)]
    return float(done.mean()) if len(done) else float("nan")


def references(table: pd.DataFrame, metric: str) -> dict[str, float]:
    """Horizontal lines: the model with nothing rewound, if that is one model, and finished unedited points of the models rewound, by name.

    Those are the rewound model itself and the bases of the same model and pre-training.
    """
    lines: dict[str, float] = {}
    untouched = table[(table["fraction"] == 0) & table[metric].notna()]
    plain = table[table["fraction"].isna() & table[metric].notna() & _unedited(table) & ~table["key"].isin(untouched["key"])]
    for name, role, value in zip(plain["name"], plain["role"], plain[metric], strict=True):
        lines["base" if role == "base" and "base" not in lines else str(name)] = float(value)
    if untouched["key"].nunique() == 1:
        lines.setdefault("nothing rewound", float(untouched[metric].iloc[0]))
    return lines


def _unedited(table: pd.DataFrame) -> pd.Series[bool]:
    """The unedited points of what is rewound, and the bases of the same model and as many tokens."""
    rewound = table["fraction"].notna()
    starts = table["model"].map(str) + " " + table["pretrain_tokens"].map(str)
    bases = (table["role"] == "base") & starts.isin(starts[rewound])
    return (table["intervention"] == "none") & (bases | table["tuned"].isin(table.loc[rewound, "tuned"]))


def _curve(names: tuple[Any, ...], rows: pd.DataFrame, metric: str, *, others: list[str], alike: pd.DataFrame) -> Curve:
    ends = {end: _end(alike, metric, end) for end in ENDS}
    known = [end for end, (value, _, _) in ends.items() if np.isfinite(value)]
    fractions = sorted({float(fraction) for fraction in rows["fraction"]} | set(known))
    repeats = [name for name in rows.columns if name.endswith("seed")]
    seeds = [seed_rows for _, seed_rows in rows.groupby(repeats, sort=True, dropna=False)]
    points = [_along(seed_rows, metric, fractions, ends) for seed_rows in seeds]
    values, errors = (np.array([[place[which] for place in row] for row in points], dtype=np.float64) for which in (0, 1))
    also = ", ".join(f"{name}={value}" for name, value in zip(others, names[2:], strict=True))
    keys = tuple(tuple(name for _, _, name in row) for row in points)
    return Curve(str(names[0]), str(names[1]), tuple(fractions), values, errors, also, keys)


def _along(rows: pd.DataFrame, metric: str, fractions: list[float], ends: dict[float, Place]) -> list[Place]:
    """The evaluation at each fraction, that of the end where the order has none of its own."""
    found = dict(zip((float(fraction) for fraction in rows["fraction"]), _places(rows, metric), strict=True))
    return [found.get(fraction, ends.get(fraction, NOWHERE)) for fraction in fractions]


def _end(rows: pd.DataFrame, metric: str, end: float) -> Place:
    done = rows[(rows["fraction"] == end) & rows[metric].notna()]
    return NOWHERE if done.empty else _places(done.iloc[:1], metric)[0]


def _places(rows: pd.DataFrame, metric: str) -> list[Place]:
    columns = (rows[metric].astype(float), rows[f"{metric}{STDERR}"].astype(float), rows["key"])
    return list(zip(*columns, strict=True))


def _std(column: Values) -> float:
    done = column[np.isfinite(column)]
    return float(done.std(ddof=1)) if len(done) > 1 else float("nan")
