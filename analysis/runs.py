"""Points that belong to one run: a model of one size, pre-trained and tuned one way; what runs are called beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis import palette
from analysis.drawing import Look
from analysis.lineage import tokens_text
from analysis.results import Results

DONE = ("key", "intervention", "percent", "matrices", "weight", "partner_key")  # partner_key: all soups of weight 0 have one key
WORDS = ("size", "pretrain_tokens", "mixture", "cpt_tokens", "model")  # what tells runs apart, the shortest that does is said


@dataclass(frozen=True)
class Run:
    """The finished points of one checkpoint, with its name and look."""

    label: str
    look: Look
    points: pd.DataFrame


def finished(results: Results, *metrics: str) -> pd.DataFrame:
    """The points that have all these metrics, each evaluation once for what was done to the weights."""
    table = results.points
    done = table.dropna(subset=list(metrics))
    return done.drop_duplicates([name for name in DONE if name in done])


def runs(table: pd.DataFrame, also: Sequence[str] = (), keys: Sequence[str] = ("tuned",)) -> list[Run]:
    """The runs of these points in their order; `also`: columns that tell runs apart too. Two seeds, or two folders, are two runs.

    `keys`: columns of keys that are the same in all points of a run; what only they tell apart is numbered.
    """
    columns = [name for name in (*WORDS, *also) if table[name].nunique(dropna=False) > 1]
    said = [name for name in columns if name not in also]
    if table["tuned"].nunique() > (len(table[said].drop_duplicates()) if said else 1):
        columns.append("which")
    groups = [rows for _, rows in table.groupby([*columns, *keys], sort=False, dropna=False)]
    if len(groups) < 2:
        return [Run(called(rows.iloc[0], ("mixture", *also)), palette.OTHERS[3], rows) for rows in groups]
    labels = [called(rows.iloc[0], columns or ("mixture", *also)) for rows in groups]
    looks = palette.series([f"{place}" for place in range(len(groups))])
    return [Run(label, looks[str(place)], rows) for place, (label, rows) in enumerate(zip(numbered(labels), groups, strict=True))]


def numbered(labels: Sequence[str]) -> list[str]:
    """The labels; those that stand twice get a number."""
    return [label if labels.count(label) == 1 else f"{label} ({labels[:place].count(label) + 1})" for place, label in enumerate(labels)]


def called(row: pd.Series[float], columns: Sequence[str]) -> str:
    """`7B / 4T tokens, math_20b`: the values of these columns in words."""
    words = [_word(name, row[name]) for name in dict.fromkeys(columns) if not pd.isna(row[name])]
    return ", ".join(filter(None, words)) or str(row["model"])


def _word(column: str, value: object) -> str:
    if column in ("pretrain_tokens", "cpt_tokens"):
        return f"{'pre-train' if column == 'pretrain_tokens' else 'CPT'} {tokens_text(float(str(value)))}"
    if column in ("partner", "partner_which"):
        return f"with {value}"
    return str(value)
