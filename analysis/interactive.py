"""A drawing on a page: plotly, every mark's numbers under the pointer, marks that can be switched off in the legend."""

from __future__ import annotations

import html
import textwrap
from typing import Any

import numpy as np

from analysis import pages, traces
from analysis.drawing import Axis, Drawing, Heat, Panel, Reference
from analysis.marks import colour_limits, heat_limits, legend_entries, needs_colour_bar, tick_step
from analysis.palette import DIVERGING, SEQUENTIAL

FONT = {"family": "Helvetica, Arial, sans-serif", "size": 13, "color": "#222222"}
GRID = {"showgrid": True, "gridcolor": "#E6E6E6", "linecolor": "#444444", "zeroline": False}
PIXELS = 100  # of a page per inch on paper
LEFT, BETWEEN_ROWS, BAR = 78, 92, 88  # pixels beside and between panels
LEGEND_LINE, LEGEND_LETTER = 22, 8.0
LEAST_WIDTH = 300  # pixels of a panel: on a phone the figure scrolls sideways
MOST_NAMES, MOST_LETTERS = 40, 44
LIBRARY = "plotly.min.js"
STYLE = """\
h1 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 .5rem }
figure { margin: 0 }
figcaption { font-size: .85rem; color: #555; max-width: 75em }"""


def figure(drawing: Drawing) -> Any:
    """The plotly figure of a drawing, without its title and caption, which stand on the page."""
    from plotly.subplots import make_subplots

    rows, columns = len(drawing.rows), max(map(len, drawing.rows))
    specs: list[list[dict[str, str] | None]] = [
        [{} if column < len(row) and row[column] is not None else None for column in range(columns)] for row in drawing.rows
    ]
    width, height = _size(drawing)
    bar = BAR if any(map(needs_colour_bar, drawing.panels)) else 0
    right = bar or 20
    plotted = width - LEFT - right
    # Plotly knows gaps as shares of the width alone: what is between panels must have room where the page is narrowest too.
    between = (LEFT + bar) / (LEAST_WIDTH * columns - LEFT - right)
    gaps = {"horizontal_spacing": min(between, 0.9 / columns), "vertical_spacing": min(BETWEEN_ROWS / height, 0.9 / rows)}
    page = make_subplots(rows=rows, cols=columns, specs=specs, **gaps)
    explained = legend_entries(drawing)
    for row, panels in enumerate(drawing.rows, start=1):
        for column, panel in enumerate(panels, start=1):
            if panel is not None:
                _panel(page, panel, {"row": row, "col": column}, {id(mark) for mark in explained.values()})
    lines = _legend_lines(list(explained), plotted)
    page.update_layout(
        font=FONT,
        plot_bgcolor="white",
        paper_bgcolor="white",
        height=height + LEGEND_LINE * lines,
        margin={"l": LEFT, "r": right, "t": 40 + LEGEND_LINE * lines, "b": 60},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "yref": "paper"},
        showlegend=bool(explained),
        barmode="overlay",
        hovermode="closest",
    )
    if lines:
        page.update_layout(legend={"y": 1 + 24 / height})
    return page


def fragment(drawing: Drawing) -> str:
    """A <figure> of a page that has plotly.js already: the plot, and the caption below it."""
    config = {"responsive": True, "displaylogo": False}
    plot = figure(drawing).to_html(
        full_html=False, include_plotlyjs=False, div_id=f"plot-{drawing.name}", config=config, default_width="100%"
    )
    least = LEAST_WIDTH * max(map(len, drawing.rows))
    label = html.escape(drawing.title, quote=True)
    return (
        f'<figure id="{html.escape(drawing.name)}" aria-label="{label}">\n'
        f'<div class="plot" tabindex="0" role="group" aria-label="{label}" style="overflow-x:auto">'
        f'<div style="min-width:{least}px">{plot}</div></div>\n'
        f"<figcaption>{html.escape(drawing.caption)}</figcaption>\n</figure>"
    )


def page(drawing: Drawing) -> str:
    """The whole page; its one script is the LIBRARY beside it, so that fifty figures do not hold fifty copies of 5 MB."""
    content = f"<h1>{html.escape(drawing.title)}</h1>\n{fragment(drawing)}"
    return pages.page(drawing.title, content, style=STYLE, width=f"{max(760, _size(drawing)[0])}px", library=LIBRARY)


def _size(drawing: Drawing) -> tuple[int, int]:
    """Pixels: all panels with what is between them, the legend not counted."""
    columns, rows = max(map(len, drawing.rows)), len(drawing.rows)
    bar = BAR if any(map(needs_colour_bar, drawing.panels)) else 0
    wide, high = (round(PIXELS * inches) for inches in drawing.panel_size)
    return columns * (LEFT + wide + bar) + 20, rows * (high + BETWEEN_ROWS) + 20


def _legend_lines(labels: list[str], width: float) -> int:
    if not labels:
        return 0
    widest = max(map(len, labels)) * LEGEND_LETTER + 60
    return -(-len(labels) // max(1, int(width / widest)))


def _panel(page: Any, panel: Panel, place: dict[str, int], explained: set[int]) -> None:
    scale = colour_limits(panel)
    for mark in panel.marks:
        if isinstance(mark, Reference):
            _reference(page, mark, place)
            continue
        named = id(mark) in explained
        page.add_traces(traces.of(mark, scale, named=named), rows=place["row"], cols=place["col"])
    subplot = page.get_subplot(**place)
    heat = next((mark for mark in panel.marks if isinstance(mark, Heat)), None)
    page.update_xaxes(_axis(panel.x, heat.columns if heat else ()), **place)
    page.update_yaxes(
        {**_axis(panel.y, heat.rows if heat else ()), **({"autorange": "reversed"} if heat and heat.downwards else {})}, **place
    )
    if heat is not None:
        page.update_xaxes(showgrid=False, **place)
        page.update_yaxes(showgrid=False, **place)
    if needs_colour_bar(panel):
        _colour_bar(page, panel, heat, subplot)
    if panel.title:
        at = {
            "xref": f"{subplot.xaxis.plotly_name.replace('axis', '')} domain",
            "yref": f"{subplot.yaxis.plotly_name.replace('axis', '')} domain",
        }
        page.add_annotation(text=html.escape(panel.title), x=0, y=1, xanchor="left", yanchor="bottom", showarrow=False, **at)


def _axis(axis: Axis, names: tuple[str, ...]) -> dict[str, Any]:
    words = "<br>".join(map(html.escape, textwrap.wrap(axis.text, MOST_LETTERS)))
    found: dict[str, Any] = {**GRID, "title": {"text": words}, "type": axis.scale}
    if names:
        places = range(0, len(names), tick_step(names, MOST_NAMES))
        found |= {"tickmode": "array", "tickvals": list(places), "ticktext": [html.escape(names[place]) for place in places]}
    elif axis.ticks:
        found |= {"tickmode": "array", "tickvals": [at for at, _ in axis.ticks], "ticktext": [html.escape(text) for _, text in axis.ticks]}
    low, high = axis.limits
    if low is not None or high is not None:
        found["range"] = [value if value is None or axis.scale == "linear" else float(np.log10(value)) for value in (low, high)]
    return found


def _colour_bar(page: Any, panel: Panel, heat: Heat | None, subplot: Any) -> None:
    """A colour scale per panel, its bar right beside it."""
    name = f"coloraxis{len([key for key in page.layout.to_plotly_json() if key.startswith('coloraxis')]) + 1}"
    low, high = heat_limits(heat) if heat is not None else colour_limits(panel) or (0.0, 1.0)
    across, up = subplot.xaxis.domain, subplot.yaxis.domain
    label = heat.label if heat is not None else panel.colours
    bar = {
        "x": across[1] + 0.005,
        "xanchor": "left",
        "y": up[0],
        "yanchor": "bottom",
        "len": up[1] - up[0],
        "thickness": 12,
        "title": {"text": html.escape(label), "side": "right"},
    }
    colours = (DIVERGING if heat is not None and heat.diverging else SEQUENTIAL)[1]
    page.update_layout({name: {"colorscale": colours, "cmin": low, "cmax": high, "colorbar": bar}})
    axis = subplot.xaxis.plotly_name.replace("axis", "")
    for trace in page.data:
        if (trace.xaxis or "x") == axis:
            if trace.type == "heatmap":
                trace.coloraxis = name
            elif trace.type in ("scatter", "scattergl") and isinstance(trace.marker.color, np.ndarray | tuple | list):
                trace.marker.coloraxis = name


def _reference(page: Any, mark: Reference, place: dict[str, int]) -> None:
    line = {"color": mark.look.colour, "width": 1.2, "dash": traces.DASHES[mark.look.dash]}
    text = html.escape(mark.label)
    if mark.y is not None:
        page.add_hline(mark.y, line=line, annotation_text=text, annotation_position="top right", **place)
    if mark.x is not None:
        page.add_vline(mark.x, line=line, annotation_text=text, annotation_position="top right", **place)
    if mark.chord is not None:
        (x, y), (to_x, to_y) = mark.chord
        page.add_shape(type="line", x0=x, y0=y, x1=to_x, y1=to_y, line=line, layer="below", **place)
        page.add_annotation(x=(x + to_x) / 2, y=(y + to_y) / 2, text=text, showarrow=False, yanchor="bottom", **place)
