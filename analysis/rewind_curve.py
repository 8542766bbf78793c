"""The figure of a rewind study: quality against the share of heads, layers or matrices rewound (P figure 5), as print and page."""

from __future__ import annotations

import os
import textwrap
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.curve_style import Style, axis_label, caption, fraction_label, headline, panels, scale, style, unstyled
from analysis.curves import Curve, curves, references

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACE: dict[Any, Any] = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "pdf.fonttype": 42,  # text stays text in the PDF
}
WIDTH = {1: 6.6, 2: 11.0}  # inches, by the number of panels
PANEL_HEIGHT = 3.9
LINE = 0.22  # inches of a line of text outside the panels
MARGIN = {"left": 0.72, "right": 0.15, "between": 0.85, "below": 0.62}
TITLE_WIDTH = {1: 58, 2: 98}  # characters
LEGEND_COLUMNS = {1: 2, 2: 4}
CAPTION_WIDTH = {1: 90, 2: 165}
DPI = 200
STAGGER = 0.35  # percent: curves of one value must not hide each other's error bars


def build(results: pd.DataFrame, title: str = "") -> tuple[Figure, Any]:
    """The matplotlib and the plotly figure of a `results.frame`; without a title, the study's question is one.

    One line per criterion and direction (ascending solid, descending dashed), random orders as their mean with a band of one standard
    deviation, standard errors as bars, the tuned model and other reference points as horizontal lines, unfinished points as gaps.
    ValueError if nothing is finished or nothing rewound.
    """
    from analysis.interactive_curve import interactive

    return printed(results, title), interactive(results, title)


def write(results: pd.DataFrame, folder: Path, *, title: str = "", name: str = "rewind_curve") -> list[Path]:
    """Write `name`.png, .pdf and .html (complete in itself: no network) and return their paths; the same results give the same bytes."""
    figure, page = build(results, title)
    folder.mkdir(parents=True, exist_ok=True)
    html = page.to_html(include_plotlyjs=True, full_html=True, div_id=name, default_height="640px")
    return [
        atomically(folder / f"{name}.png", lambda path: figure.savefig(path, dpi=DPI, format="png")),
        atomically(folder / f"{name}.pdf", lambda path: figure.savefig(path, format="pdf", metadata={"CreationDate": None})),
        atomically(folder / f"{name}.html", lambda path: path.write_text(html)),
    ]


def printed(results: pd.DataFrame, title: str = "") -> Figure:
    """The figure for print; errors as `build`."""
    import matplotlib
    from matplotlib.figure import Figure

    metrics = panels(results)
    count = len(metrics)
    heading = textwrap.wrap(title or headline(results), TITLE_WIDTH[count])
    note = textwrap.wrap(caption(results, curves(results, metrics[0])), CAPTION_WIDTH[count])
    columns, rows = _legend_grid(len(curves(results, metrics[0])), count)
    above, below = LINE * (1.3 * len(heading) + rows + 1.2), MARGIN["below"] + LINE * len(note)
    width, height = WIDTH[count], above + PANEL_HEIGHT + below
    with matplotlib.rc_context(FACE):
        figure = Figure(figsize=(width, height))
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, metric in zip(axes, metrics, strict=True):
            _panel(axis, results, metric)
        panel = (width - MARGIN["left"] - MARGIN["right"] - (count - 1) * MARGIN["between"]) / count
        figure.subplots_adjust(MARGIN["left"] / width, below / height, 1 - MARGIN["right"] / width, 1 - above / height)
        figure.subplots_adjust(wspace=MARGIN["between"] / panel)
        left = 0.16 / width
        look: dict[str, Any] = {"va": "top", "fontsize": 12.5, "fontweight": "bold", "color": "#111111", "linespacing": 1.25}
        figure.text(left, 1 - 0.12 / height, "\n".join(heading), **look)
        figure.text(left, 0.1 / height, "\n".join(note), va="bottom", fontsize=8.5, color="#555555", linespacing=1.35)
        _legend(figure, axes[0], (left, 1 - (above - (rows / 2 + 0.5) * LINE) / height), columns)
    return figure


def _legend_grid(entries: int, count: int) -> tuple[int, int]:
    """(columns, rows) that fit above so many panels; an even number of rows, for entries run down the columns in pairs."""
    rows = -(-entries // LEGEND_COLUMNS[count])
    rows += rows % 2
    return -(-entries // rows), rows


def _legend(figure: Figure, axis: Axes, anchor: tuple[float, float], columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    look: dict[str, Any] = {
        "frameon": False,
        "fontsize": 9.5,
        "handlelength": 3.4,
        "columnspacing": 2.2,
        "borderpad": 0.0,
        "borderaxespad": 0.0,
    }
    figure.legend(handles, labels, loc="center left", bbox_to_anchor=anchor, ncols=columns, **look)


def _panel(axis: Axes, results: pd.DataFrame, metric: str) -> None:
    drawn, factor = curves(results, metric), scale(results, metric)
    others = unstyled(drawn)
    for index, curve in enumerate(drawn):
        _draw(axis, curve, style(curve, others), factor, shift=STAGGER * (index - (len(drawn) - 1) / 2))
    for name, value in references(results, metric).items():
        axis.axhline(factor * value, color="#222222", linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axis.annotate(name, (1, factor * value), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", **_SMALL)
    axis.set_xlabel(fraction_label(results))
    axis.set_ylabel(axis_label(results, metric))
    axis.set_xlim(-3, 103)
    if factor == 100:
        axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))


_SMALL: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": "#222222"}


def _draw(axis: Axes, curve: Curve, look: Style, factor: float, *, shift: float) -> None:
    """One line; bars stand a little beside each other, the ends (the same for all) exactly at 0 and 100."""
    at = 100 * np.array(curve.fractions)
    mean, descending = factor * curve.mean, curve.direction == "descending"
    if len(curve.values) > 1:
        spread = factor * curve.spread
        axis.fill_between(at, mean - spread, mean + spread, color=look.colour, alpha=0.18, linewidth=0, zorder=2)
    else:
        inside = (at > 0) & (at < 100)
        bars: dict[str, Any] = {"fmt": "none", "ecolor": look.colour, "elinewidth": 1.1, "capsize": 2.0, "alpha": 0.75}
        axis.errorbar(at + shift * inside, mean, yerr=factor * curve.errors[0], zorder=2.5, **bars)
        at = at + shift * inside
    axis.plot(
        at,
        mean,
        label=curve.label,
        color=look.colour,
        linestyle=(0, (4.5, 2.2)) if descending else "-",
        linewidth=1.9,
        marker=look.marker,
        markersize=8.5 if look.marker == "*" else 6.0,
        markerfacecolor="white" if descending else look.colour,
        markeredgewidth=1.3,
        zorder=3,
    )


def atomically(path: Path, save: Callable[[Path], Any]) -> Path:
    """Save by a temporary sibling and rename; the path."""
    beside = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        save(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path
