"""How metrics are drawn: shares in percent, words on the axes, which ones stand beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.drawing import Axis
from analysis.results import is_share, metric_names, rewound_units
from cpt_lab.names import unknown

if TYPE_CHECKING:
    import pandas as pd


def scale(table: pd.DataFrame, metric: str) -> float:
    """100 for shares, which are drawn in percent; else 1."""
    return 100.0 if is_share(table, metric) else 1.0


def unit(table: pd.DataFrame, metric: str) -> str:
    return "%" if is_share(table, metric) else ""


def label(table: pd.DataFrame, metric: str) -> str:
    """`task: metric`, and which way is better where it is not up."""
    task, _, name = metric.partition("/")
    better = "" if table.attrs["higher_is_better"].get(metric) else " (lower is better)"
    return f"{task}: {name.replace('_', ' ')}{better}"


def axis(table: pd.DataFrame, metric: str, *, from_zero: bool = False) -> Axis:
    """Of a metric; shares begin at zero if that is wanted."""
    return Axis(label(table, metric), unit(table, metric), limits=(0.0 if from_zero and is_share(table, metric) else None, None))


def panels(table: pd.DataFrame, asked: list[str] | str | None = None) -> list[str]:
    """The metrics that are drawn: those asked for, or the primary one and beside it the text's bits per byte or the next task's first.

    KeyError for a metric that was not scored.
    """
    names = metric_names(table)
    if asked:
        wanted = [asked] if isinstance(asked, str) else list(asked)
        for name in wanted:
            if name not in names:
                raise KeyError(unknown("metric", name, names))
        return wanted
    task = names[0].split("/")[0]
    elsewhere = [name for name in names if name.split("/")[0] != task]
    beside = [name for name in elsewhere if name.endswith("bits_per_byte")] or elsewhere
    return names[:1] + beside[:1]


def pair(table: pd.DataFrame, x: str | None, y: str | None) -> tuple[str, str]:
    """Two metrics against each other: those asked for, or the primary one and that of language; ValueError if there is one only."""
    names = metric_names(table)
    first = panels(table, x)[0]
    if y:
        return first, panels(table, y)[0]
    others = [name for name in names if name.split("/")[0] != first.split("/")[0]]
    if not others:
        raise ValueError(f"these points have the scores of one task only, {first}: a plane needs two, as protocol=paper has")
    language = [name for name in others if name.startswith("language")]
    return first, (language or [name for name in others if name.endswith("bits_per_byte")] or others)[0]


def fraction_axis(table: pd.DataFrame) -> Axis:
    """What the horizontal axis of a rewind study counts: heads, layers or matrices."""
    return Axis(f"{rewound_units(table).capitalize()} rewound to the base", "%", limits=(-3, 103))
