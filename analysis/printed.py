"""A drawing on paper: matplotlib, every panel placed to the tenth of an inch, the same bytes from the same data."""

from __future__ import annotations

import io
import logging
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis import marks
from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.marks import colour_limits, legend_entries, needs_colour_bar, tick_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACE: dict[Any, Any] = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 10.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "pdf.fonttype": 42,  # text stays text in the PDF
}
EDGE, LINE, SMALL_LINE = 0.16, 0.22, 0.175  # inches: around everything; a line of the title or legend; a line of the caption
LEFT, RIGHT, ABOVE, BELOW, BAR = 0.74, 0.14, 0.1, 0.52, 0.95  # inches around a panel; BAR for a colour bar with its words
TITLE_CHARACTERS, CAPTION_CHARACTERS, LEGEND_CHARACTERS, LABEL_CHARACTERS = 9.3, 14.6, 12.5, 12.0  # that fit an inch
HANDLE = 0.62  # inches of a legend's line before its words, and of the room after them
DPI, MOST_PIXELS = 200, 8000
MOST_TICKS = 16


@dataclass(frozen=True)
class Layout:
    """Inches: the page, and what stands above and below the panels and around each."""

    width: float
    height: float
    above: float
    left: float
    right: float
    top: float
    bottom: float
    panel: tuple[float, float]
    heading: tuple[str, ...]
    note: tuple[str, ...]
    legend: tuple[int, int]  # columns, rows

    def place(self, row: int, column: int) -> tuple[float, float, float, float]:
        """left, bottom, width and height of a panel as shares of the page."""
        width, height = self.panel
        x = EDGE + column * (self.left + width + self.right) + self.left
        y = self.height - self.above - row * (self.top + height + self.bottom) - self.top - height
        return x / self.width, y / self.height, width / self.width, height / self.height


def figure(drawing: Drawing) -> Figure:
    """The matplotlib figure of a drawing: title, legend, panels, caption."""
    import matplotlib
    from matplotlib.figure import Figure

    layout = laid_out(drawing)
    with matplotlib.rc_context(FACE):
        page = Figure(figsize=(layout.width, layout.height))
        for row, panels in enumerate(drawing.rows):
            for column, panel in enumerate(panels):
                if panel is not None:
                    _panel(page, page.add_axes(layout.place(row, column)), panel, layout)
        look: dict[str, Any] = {"va": "top", "fontsize": 12.5, "fontweight": "bold", "color": "#111111", "linespacing": 1.25}
        page.text(EDGE / layout.width, 1 - 0.12 / layout.height, "\n".join(layout.heading), **look)
        small: dict[str, Any] = {"va": "bottom", "fontsize": 8.5, "color": "#555555", "linespacing": 1.35}
        page.text(EDGE / layout.width, 0.1 / layout.height, "\n".join(layout.note), **small)
        _legend(page, drawing, layout)
    return page


def files(drawing: Drawing) -> dict[str, bytes]:
    """Suffix -> content: a PNG and a PDF whose text is text. The same drawing gives the same bytes."""
    import matplotlib

    logging.getLogger("fontTools.subset").setLevel(logging.WARNING)  # it tells of every table of every font that a PDF takes
    page = figure(drawing)
    dpi = min(DPI, MOST_PIXELS / max(page.get_size_inches()))
    png, pdf = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(FACE):  # the kind of font is looked up when a PDF is written
        page.savefig(png, dpi=dpi, format="png")
        page.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def laid_out(drawing: Drawing) -> Layout:
    """Where everything goes: the page grows with what must stand on it."""
    columns, rows = max(map(len, drawing.rows)), len(drawing.rows)
    names = [len(name) for panel in drawing.panels for name in _row_names(panel)]
    wrapped = [(_wrapped(panel.x, drawing.panel_size[0]), _wrapped(panel.y, drawing.panel_size[1])) for panel in drawing.panels]
    left = max(LEFT, 0.45 + 0.075 * max(names, default=0)) + SMALL_LINE * max(0, max(len(y) for _, y in wrapped) - 1)
    right = BAR if any(needs_colour_bar(panel) for panel in drawing.panels) else RIGHT
    top = ABOVE + (0.26 if any(panel.title for panel in drawing.panels) else 0)
    slanted = max((len(name) for panel in drawing.panels for name in _slanted(panel, drawing.panel_size[0])), default=0)
    bottom = BELOW + 0.055 * slanted + SMALL_LINE * max(0, max(len(x) for x, _ in wrapped) - 1)
    width = 2 * EDGE + columns * (left + drawing.panel_size[0] + right)
    heading = tuple(textwrap.wrap(drawing.title, max(30, int(TITLE_CHARACTERS * width))))
    note = tuple(textwrap.wrap(drawing.caption, max(40, int(CAPTION_CHARACTERS * (width - 2 * EDGE)))))
    legend = _legend_grid(list(legend_entries(drawing)), width - 2 * EDGE)
    above = EDGE + LINE * (1.1 * len(heading) + legend[1]) + (0.12 if legend[1] else 0)
    height = above + rows * (top + drawing.panel_size[1] + bottom) + EDGE + SMALL_LINE * len(note)
    return Layout(width, height, above, left, right, top, bottom, drawing.panel_size, heading, note, legend)


def _panel(page: Figure, axes: Axes, panel: Panel, layout: Layout) -> None:
    if panel.title:
        axes.set_title(panel.title, loc="left", color="#222222", pad=5)
    heat = next((mark for mark in panel.marks if isinstance(mark, Heat)), None)
    if heat is not None:
        axes.grid(False)
    scale = colour_limits(panel)
    drawn = [marks.draw(axes, mark, scale) for mark in panel.marks]
    coloured = next((artist for artist in drawn if artist is not None), None)
    _axis(axes, "x", panel.x, layout.panel[0])
    _axis(axes, "y", panel.y, layout.panel[1])
    if heat is not None:
        _names(axes, heat, layout.panel)
    if coloured is not None and needs_colour_bar(panel):
        box = axes.get_position()
        inset = page.add_axes((box.x1 + 0.1 / layout.width, box.y0, 0.12 / layout.width, box.height))
        page.colorbar(coloured, cax=inset, label=heat.label if heat is not None else panel.colours)


def _axis(axes: Axes, which: str, axis: Axis, inches: float) -> None:
    getattr(axes, f"set_{which}label")("\n".join(_wrapped(axis, inches)))
    if axis.scale == "log":
        getattr(axes, f"set_{which}scale")("log")
    low, high = axis.limits
    limit = getattr(axes, f"set_{which}lim")
    if low is not None:
        limit(low, None)
    if high is not None:
        limit(None, high)
    if axis.ticks:
        places, names = zip(*axis.ticks, strict=True)
        slant: dict[str, Any] = {"rotation": 35, "ha": "right"} if which == "x" and _crowded(names, axes) else {}
        getattr(axes, f"set_{which}ticks")(places, names, **slant)
        getattr(axes, f"{which}axis").minorticks_off()


def _wrapped(axis: Axis, inches: float) -> list[str]:
    """The words beside an axis in lines that are no longer than it."""
    return textwrap.wrap(axis.text, max(12, int(LABEL_CHARACTERS * (inches + 0.5))))


def _names(axes: Axes, heat: Heat, panel: tuple[float, float]) -> None:
    """Names of rows and columns, or numbers; every so many where they would stand on each other."""
    from matplotlib.ticker import MaxNLocator

    for which, names, inches in (("x", heat.columns, panel[0]), ("y", heat.rows, panel[1])):
        if not names:
            getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(integer=True))
            continue
        step = tick_step(names, MOST_TICKS if all(name.isdigit() for name in names) else max(MOST_TICKS, int(inches / 0.16)))
        places = range(0, len(names), step)
        slant: dict[str, Any] = {"rotation": 35, "ha": "right"} if which == "x" and _crowded(names[::step], axes) else {}
        getattr(axes, f"set_{which}ticks")(list(places), [names[place] for place in places], **slant)


def _crowded(names: tuple[str, ...], axes: Axes) -> bool:
    width = axes.get_position().width * axes.figure.get_figwidth()  # type: ignore[union-attr]  # a figure that has no parent
    return _is_crowded(names, width)


def _is_crowded(names: tuple[str, ...], width: float) -> bool:
    """Whether names do not fit side by side, at 0.085 inches a letter."""
    return sum(len(name) + 1.5 for name in names) * 0.085 > width


def _slanted(panel: Panel, width: float) -> tuple[str, ...]:
    """The names below a panel that must be slanted, which takes room."""
    heat = next((mark for mark in panel.marks if isinstance(mark, Heat)), None)
    names = heat.columns[:: tick_step(heat.columns, MOST_TICKS)] if heat is not None else tuple(name for _, name in panel.x.ticks)
    return names if names and _is_crowded(names, width) else ()


def _row_names(panel: Panel) -> tuple[str, ...]:
    heats = [mark for mark in panel.marks if isinstance(mark, Heat)]
    return heats[0].rows if heats else tuple(name for _, name in panel.y.ticks)


def _legend_grid(entries: list[str], width: float) -> tuple[int, int]:
    """(columns, rows); an even number of rows, for entries run down the columns and come in pairs."""
    if not entries:
        return 1, 0
    widest = max(len(label) for label in entries) / LEGEND_CHARACTERS + HANDLE
    rows = -(-len(entries) // max(1, int(width / widest)))
    rows += rows % 2 if rows > 1 else 0
    return -(-len(entries) // rows), rows


def _legend(page: Figure, drawing: Drawing, layout: Layout) -> None:
    columns, rows = layout.legend
    if not rows:
        return
    wanted = legend_entries(drawing)
    handles = {label: marks.handle(mark) for label, mark in wanted.items()}
    middle = layout.above - 0.06 - LINE * rows / 2
    look: dict[str, Any] = {"frameon": False, "fontsize": 9.5, "handlelength": 3.0, "columnspacing": 1.8, "borderpad": 0.0}
    anchor = (EDGE / layout.width, 1 - middle / layout.height)
    page.legend(list(handles.values()), list(handles), loc="center left", bbox_to_anchor=anchor, ncols=columns, borderaxespad=0.0, **look)
