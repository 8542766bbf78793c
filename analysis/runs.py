"""Points that belong to one run: a model of one size, pre-trained and tuned one way; what runs are called beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import palette
from analysis.drawing import Look
from analysis.results import Results

WORDS = ("size", "pretrain_tokens", "mixture", "cpt_tokens", "model")  # what tells runs apart, the shortest that does is said


@dataclass(frozen=True)
class Run:
    """The finished points of one run, with its name and look."""

    label: str
    look: Look
    points: pd.DataFrame


def finished(results: Results, *metrics: str) -> pd.DataFrame:
    """The points that have all these metrics, each evaluation once for what was done to the weights."""
    table = results.points
    done = table.dropna(subset=list(metrics))
    return done.drop_duplicates([name for name in ("key", "intervention", "percent", "weight", "partner") if name in done])


def runs(table: pd.DataFrame, also: Sequence[str] = ()) -> list[Run]:
    """The runs of these points in their order; `also`: columns that tell runs apart too."""
    columns = [name for name in (*WORDS, *also) if table[name].nunique(dropna=False) > 1]
    if not columns:
        return [Run(called(table.iloc[0], ("mixture", *also)), palette.OTHERS[3], table)] if len(table) else []
    groups = [(called(rows.iloc[0], columns), rows) for _, rows in table.groupby(columns, sort=False, dropna=False)]
    looks = palette.series([f"{place}" for place in range(len(groups))])
    return [Run(label, looks[str(place)], rows) for place, (label, rows) in enumerate(groups)]


def called(row: pd.Series[float], columns: Sequence[str]) -> str:
    """`7B / 4T tokens, math_20b`: the values of these columns in words."""
    words = [_word(name, row[name]) for name in dict.fromkeys(columns) if not pd.isna(row[name])]
    return ", ".join(filter(None, words)) or str(row["model"])


def tokens(count: float) -> str:
    """`4T`, `20B`, `1.02M` tokens."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.0f}"


def _word(column: str, value: object) -> str:
    if column in ("pretrain_tokens", "cpt_tokens"):
        return f"{'pre-train' if column == 'pretrain_tokens' else 'CPT'} {tokens(float(str(value)))}"
    if column == "partner":
        return f"with {value}"
    return str(value)
