"""Each mark of a drawing as plotly's traces."""

from __future__ import annotations

import html
from typing import Any

import numpy as np

from analysis.drawing import Bars, Dots, Heat, Line, Look, Mark, Spread, Values
from analysis.marks import BAND_ALPHA, HATCHES, Limits, heat_limits
from analysis.palette import DIVERGING, SEQUENTIAL

DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
SYMBOLS = {  # of matplotlib's markers
    **{"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross", "X": "x", "*": "star"},
    **{"h": "hexagon", "p": "pentagon", "<": "triangle-left", ">": "triangle-right", "": "circle"},
}
MANY = 2000  # so many dots are drawn by the graphics card


def of(mark: Mark, scale: Limits | None, *, named: bool) -> list[Any]:
    """The traces of a mark, the one that the legend shows last; `named` puts it there."""
    match mark:
        case Line():
            return _line(mark, named=named)
        case Dots():
            return [_dots(mark, scale, named=named)]
        case Spread():
            return [_spread(mark, named=named)]
        case Bars():
            return [_bars(mark, named=named)]
        case Heat():
            return [_heat(mark)]
    raise TypeError(f"a {type(mark).__name__} has no trace")


def _line(mark: Line, *, named: bool) -> list[Any]:
    import plotly.graph_objects as objects

    low, high = mark.low, mark.high
    if mark.band is not None:
        low, high = mark.y - mark.band, mark.y + mark.band
    group = {"legendgroup": mark.group or mark.label}
    error = mark.bars if mark.bars is not None else mark.band
    words = (
        f" ± %{{customdata:.2g}}<extra>{html.escape(mark.label)}</extra>"
        if error is not None
        else f"<extra>{html.escape(mark.label)}</extra>"
    )
    line = objects.Scatter(
        x=mark.x,
        y=mark.y,
        name=html.escape(mark.label),
        mode="lines+markers" if mark.look.marker else "lines",
        showlegend=named,
        line={"color": mark.look.colour, "width": mark.look.width + 0.3, "dash": DASHES[mark.look.dash]},
        marker=_marker(mark.look, 9.0),
        error_y=None if mark.bars is None else {"array": mark.bars, "thickness": 1.2, "width": 3},
        customdata=error,
        text=[html.escape(text) for text in mark.text] or None,
        hovertemplate=("%{text}<br>" if mark.text else "") + "%{x:.6~g}: %{y:.4g}" + words,
        **group,
    )
    return [line] if low is None or high is None else [_band(mark.x, low, high, mark.look.colour, group), line]


def _band(x: Values, low: Values, high: Values, colour: str, group: dict[str, str]) -> Any:
    """The area between two lines, where both are known."""
    import plotly.graph_objects as objects

    known = np.isfinite(low) & np.isfinite(high)
    x, low, high = x[known], low[known], high[known]
    return objects.Scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=_see_through(colour, BAND_ALPHA),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        **group,
    )


def _dots(mark: Dots, scale: Limits | None, *, named: bool) -> Any:
    import plotly.graph_objects as objects

    kind = objects.Scattergl if len(mark.x) > MANY else objects.Scatter
    marker = _marker(mark.look, 1.4 * mark.size)
    coloured = "<br>%{marker.color:.4g}" if mark.by is not None else ""
    if mark.by is not None:
        low, high = scale or (0.0, 1.0)
        marker |= {"color": mark.by, "colorscale": SEQUENTIAL[1], "cmin": low, "cmax": high, "line": {"width": 0}}
    return kind(
        x=mark.x,
        y=mark.y,
        name=html.escape(mark.label),
        mode="markers+text" if mark.written else "markers",
        marker=marker,
        text=[html.escape(text) for text in mark.text] or None,
        textposition="top right",
        error_x=None if mark.x_bars is None else {"array": mark.x_bars, "thickness": 1.2, "width": 3},
        error_y=None if mark.y_bars is None else {"array": mark.y_bars, "thickness": 1.2, "width": 3},
        hovertemplate=("%{text}<br>" if mark.text else "") + "%{x:.4g}, %{y:.4g}" + coloured + f"<extra>{html.escape(mark.label)}</extra>",
        showlegend=named,
        legendgroup=mark.group or mark.label,
    )


def _spread(mark: Spread, *, named: bool) -> Any:
    import plotly.graph_objects as objects

    known = np.isfinite(mark.samples)
    samples, colour = mark.samples[known], mark.look.colour
    common: dict[str, Any] = {
        "x": np.full(len(samples), mark.at),
        "y": samples,
        "name": html.escape(mark.label),
        "width": mark.width,
        "line": {"color": colour, "width": 1.4},
        "fillcolor": _see_through(colour, 0.3),
        "marker": {"color": colour, "size": 3, "opacity": 0.5},
        "showlegend": named,
        "legendgroup": mark.group or mark.label,
        "jitter": 0.35,
        "pointpos": 0,
    }
    if mark.kind == "violin":
        return objects.Violin(**common, points="all" if mark.jitter else False, meanline={"visible": True}, spanmode="hard")
    return objects.Box(**common, boxpoints="all" if mark.jitter else "outliers")


def _bars(mark: Bars, *, named: bool) -> Any:
    import plotly.graph_objects as objects

    shape = HATCHES[mark.look.dash][:1]
    return objects.Bar(
        x=mark.x + mark.offset,
        y=mark.height,
        width=mark.width,
        name=html.escape(mark.label),
        marker={"color": mark.look.colour, "pattern": {"shape": shape, "fgcolor": "white", "size": 6}},
        error_y=None if mark.errors is None else {"array": mark.errors, "thickness": 1.2, "width": 3, "color": "#222222"},
        hovertext=[html.escape(text) for text in mark.text] or None,
        hovertemplate=("%{hovertext}<br>" if mark.text else "") + "%{y:.4g}" + f"<extra>{html.escape(mark.label)}</extra>",
        showlegend=named,
        legendgroup=mark.group or mark.label,
    )


def _heat(mark: Heat) -> Any:
    import plotly.graph_objects as objects

    low, high = heat_limits(mark)
    rows, columns = (
        list(names) or [str(place) for place in range(count)]
        for names, count in zip((mark.rows, mark.columns), mark.cells.shape, strict=True)
    )
    named = [[f"{html.escape(row)}, {html.escape(column)}" for column in columns] for row in rows]
    if mark.text:
        named = [
            [f"{name}<br>{html.escape(text)}" for name, text in zip(*pair, strict=True)] for pair in zip(named, mark.text, strict=True)
        ]
    return objects.Heatmap(
        z=mark.cells,
        zmin=low,
        zmax=high,
        colorscale=(DIVERGING if mark.diverging else SEQUENTIAL)[1],
        text=named,
        hovertemplate="%{text}: %{z:.4g}<extra></extra>",
        texttemplate="%{z:.3g}" if mark.written else None,
        hoverongaps=False,
    )


def _marker(look: Look, size: float) -> dict[str, Any]:
    symbol = SYMBOLS.get(look.marker, "circle")
    hollow = not look.filled and symbol != "x"
    return {"symbol": f"{symbol}-open" if hollow else symbol, "size": size, "color": look.colour}


def _see_through(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
