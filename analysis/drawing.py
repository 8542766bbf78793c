"""A figure as data: panels of marks with labelled axes, and tables of cells.

What is drawn is decided once; `printed` and `interactive` only say how it looks on paper and on a page. Tests compare what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import pandas as pd

Values = NDArray[np.float64]
Dash = Literal["solid", "dashed", "dotted"]
Scale = Literal["linear", "log"]


def values(given: ArrayLike) -> Values:
    """Numbers as float64, missing ones as NaN."""
    return np.asarray([np.nan if value is None else value for value in np.ravel(np.asarray(given, dtype=object))], dtype=np.float64)


@dataclass(frozen=True)
class Look:
    """How a mark is coloured and told apart in grey: a colour by meaning, a dash, a marker (matplotlib's name)."""

    colour: str = "#222222"
    dash: Dash = "solid"
    marker: str = ""
    filled: bool = True
    width: float = 1.9


@dataclass(frozen=True)
class Axis:
    """What an axis counts; `label [unit]` is written beside it."""

    label: str = ""
    unit: str = ""
    scale: Scale = "linear"
    limits: tuple[float | None, float | None] = (None, None)
    ticks: tuple[tuple[float, str], ...] = ()  # (place, text); empty: chosen by the renderer

    @property
    def text(self) -> str:
        return f"{self.label} [{self.unit}]" if self.unit else self.label


@dataclass(frozen=True)
class Line:
    """y over x, with a band (half-width) or error bars (half-length) where they are known; NaN leaves a gap."""

    label: str
    x: Values
    y: Values
    look: Look = Look()
    band: Values | None = None  # half-width of the shaded area
    low: Values | None = None  # an asymmetric band: from low to high
    high: Values | None = None
    bars: Values | None = None
    text: tuple[str, ...] = ()  # per place, for the pointer
    in_legend: bool = True
    group: str = ""  # lines of one group are switched together on a page; the label if empty


@dataclass(frozen=True)
class Dots:
    """Points that are not joined; coloured by `by` (a number each, on the panel's colour scale) or by the look."""

    label: str
    x: Values
    y: Values
    look: Look = Look(marker="o")
    by: Values | None = None
    size: float = 6.0
    x_bars: Values | None = None
    y_bars: Values | None = None
    text: tuple[str, ...] = ()  # names of the points, shown under the pointer
    written: bool = False  # the text is also written beside the points
    in_legend: bool = True
    group: str = ""


@dataclass(frozen=True)
class Spread:
    """The distribution of samples at one place: a box plot or a violin; `jitter` draws the samples too."""

    label: str
    at: float
    samples: Values
    look: Look = Look()
    kind: Literal["box", "violin"] = "box"
    jitter: bool = False
    width: float = 0.6
    in_legend: bool = False
    group: str = ""


@dataclass(frozen=True)
class Bars:
    """A bar per place, grouped by label; errors are half-lengths."""

    label: str
    x: Values
    height: Values
    look: Look = Look()
    errors: Values | None = None
    width: float = 0.8
    offset: float = 0.0
    text: tuple[str, ...] = ()
    in_legend: bool = True
    group: str = ""


@dataclass(frozen=True)
class Heat:
    """A matrix as colours, rows upwards from the first unless `downwards`; zero in the middle if `diverging`. NaN is left white."""

    cells: NDArray[np.float64]  # rows x columns
    rows: tuple[str, ...] = ()  # names; empty: numbers
    columns: tuple[str, ...] = ()
    label: str = ""  # of the colours, with the unit
    diverging: bool = False
    limits: tuple[float, float] | None = None
    downwards: bool = False
    written: bool = False  # numbers in the cells
    text: tuple[tuple[str, ...], ...] = ()  # per cell, for the pointer


@dataclass(frozen=True)
class Reference:
    """A thin line at one value across the panel, or a chord between two points (x, y), with its name."""

    label: str
    y: float | None = None
    x: float | None = None
    chord: tuple[tuple[float, float], tuple[float, float]] | None = None
    look: Look = Look("#222222", "dotted", width=0.9)


Mark = Line | Dots | Spread | Bars | Heat | Reference


@dataclass(frozen=True)
class Panel:
    """Axes with marks; `colours` names the colour scale of dots that have one, `colour_limits` its ends if panels are to share it."""

    marks: tuple[Mark, ...]
    title: str = ""
    x: Axis = Axis()
    y: Axis = Axis()
    colours: str = ""
    colour_limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Drawing:
    """A whole figure: rows of panels (None leaves a place empty), what it shows in a title, and in the caption the exact specs and n."""

    name: str  # a file name
    title: str
    caption: str
    rows: tuple[tuple[Panel | None, ...], ...]
    legend: bool = True
    panel_size: tuple[float, float] = (3.4, 2.7)  # inches

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row if panel is not None)

    def data(self) -> pd.DataFrame:
        """Everything drawn as one long table: panel, mark, label and the numbers; the CSV beside the figure."""
        import pandas as pd

        return pd.DataFrame([row for panel in self.panels for mark in panel.marks for row in _rows(panel, mark)])


@dataclass(frozen=True)
class Cell:
    """A number with its error in a table, or words; `best` is set in bold."""

    value: float | str | None
    error: float | None = None
    digits: int = 1
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table: a heading per column, names of rows first; written as CSV (every number in full), Markdown, LaTeX and HTML."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]  # the first one heads the names of the rows
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    groups: tuple[tuple[int, str], ...] = field(default=())  # (index of a row, heading written before it)


def grid(panels: Sequence[Panel | None], columns: int) -> tuple[tuple[Panel | None, ...], ...]:
    """Panels in rows of so many columns; the last row is filled up with None."""
    filled = [*panels, *([None] * (-len(panels) % columns))]
    return tuple(tuple(filled[start : start + columns]) for start in range(0, len(filled), columns))


def _rows(panel: Panel, mark: Mark) -> Iterator[dict[str, Any]]:
    """A mark as rows of the long table."""
    common = {"panel": panel.title, "mark": type(mark).__name__.lower(), "label": mark.label}
    match mark:
        case Line():
            low, high = mark.low, mark.high
            if mark.band is not None:
                low, high = mark.y - mark.band, mark.y + mark.band
            yield from _columns(common, x=mark.x, y=mark.y, low=low, high=high, error=mark.bars)
        case Dots():
            yield from _columns(common, x=mark.x, y=mark.y, error=mark.y_bars, x_error=mark.x_bars, by=mark.by)
        case Spread():
            yield from ({**common, "x": mark.at, "y": float(sample)} for sample in mark.samples)
        case Bars():
            yield from _columns(common, x=mark.x, y=mark.height, error=mark.errors)
        case Heat():
            for (row, column), cell in np.ndenumerate(mark.cells):
                yield {**common, "row": _name(mark.rows, row), "column": _name(mark.columns, column), "y": float(cell)}
        case Reference():
            yield from ({**common, "x": x, "y": y} for x, y in mark.chord or ((mark.x, mark.y),))


def _columns(common: dict[str, Any], **columns: Values | None) -> Iterator[dict[str, Any]]:
    known = {name: column for name, column in columns.items() if column is not None}
    for place in zip(*known.values(), strict=True):
        yield {**common, **dict(zip(known, map(float, place), strict=True))}


def _name(names: tuple[str, ...], index: int) -> str | int:
    return names[index] if names else index
