"""How curves look: a colour and a marker per criterion, a line per direction, the words on the axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from analysis.curves import Curve
from analysis.results import gaps, is_share, metric_names, rewound_units

if TYPE_CHECKING:
    import pandas as pd


class Style(NamedTuple):
    """Of a criterion: colours that colour-blind people tell apart, and a marker (matplotlib's and plotly's names) for grey prints."""

    colour: str
    marker: str
    symbol: str


STYLES: dict[str, Style] = {
    "scaled_norm_diff": Style("#0072B2", "o", "circle"),
    "delta_norm": Style("#D55E00", "s", "square"),
    "greedy": Style("#009E73", "^", "triangle-up"),
    "agreement_diff": Style("#A0468C", "D", "diamond"),
    "agreement": Style("#56B4E9", "v", "triangle-down"),
    "pl_ks": Style("#B8860B", "P", "cross"),
    "pl_alpha": Style("#7A4A1E", "X", "x"),
    "random": Style("#6E6E6E", "*", "star"),
}
OTHERS = (Style("#332288", "h", "hexagon"), Style("#117733", "p", "pentagon"), Style("#882255", "<", "triangle-left"))


def style(curve: Curve, others: list[str]) -> Style:
    """The criterion's own style; others share a few by their place in `others`."""
    if curve.family in STYLES:
        return STYLES[curve.family]
    return OTHERS[others.index(curve.family) % len(OTHERS)]


def unstyled(drawn: list[Curve]) -> list[str]:
    return list(dict.fromkeys(curve.family for curve in drawn if curve.family not in STYLES))


def panels(table: pd.DataFrame) -> list[str]:
    """The metrics that are drawn: the primary one, and beside it the text's bits per byte or the next task's first metric."""
    names = metric_names(table)
    task = names[0].split("/")[0]
    elsewhere = [name for name in names if name.split("/")[0] != task]
    beside = [name for name in elsewhere if name.endswith("bits_per_byte")] or elsewhere
    return names[:1] + beside[:1]


def headline(table: pd.DataFrame) -> str:
    """The study's question, or its name if it asks none."""
    return str(table.attrs["question"] or table.attrs["study"])


def scale(table: pd.DataFrame, metric: str) -> float:
    """100 for shares, which are drawn in percent; else 1."""
    return 100.0 if is_share(table, metric) else 1.0


def fraction_label(table: pd.DataFrame) -> str:
    """What the horizontal axis counts: heads, layers or matrices."""
    return f"{rewound_units(table).capitalize()} rewound to the base [%]"


def axis_label(table: pd.DataFrame, metric: str) -> str:
    """`task: metric [%]`, and which way is better where it is not up."""
    task, _, name = metric.partition("/")
    unit = " [%]" if is_share(table, metric) else ""
    better = "" if table.attrs["higher_is_better"].get(metric) else "  (lower is better)"
    return f"{task}: {name.replace('_', ' ')}{unit}{better}"


def caption(table: pd.DataFrame, drawn: list[Curve]) -> str:
    """What the figure must say: sample sizes, protocol, what bars and bands are, what is missing."""
    sizes = " and ".join(_size(table, metric) for metric in panels(table))
    seeds = max(len(curve.values) for curve in drawn)
    parts = [f"Protocol {table.attrs['protocol']}: {sizes}", "bars: standard error over documents"]
    if seeds > 1:
        parts.append(f"band: standard deviation over {seeds} orders")
    missing = gaps(table)
    return "; ".join([*parts, *([f"gaps: {missing}"] if missing else [])]) + "."


def _size(table: pd.DataFrame, metric: str) -> str:
    """How many documents a metric is made from, and which, if they are a part."""
    part = table.attrs.get("part", {}).get(metric)
    return f"{table.attrs['n'][metric]:,} documents of {metric.split('/')[0]}" + (f" ({part})" if part else "")
