"""The rewind figure as a page: the same lines, with every point's numbers under the pointer and lines that can be switched off."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.curve_style import Style, axis_label, caption, fraction_label, headline, panels, scale, style, unstyled
from analysis.curves import Curve, curves, references

if TYPE_CHECKING:
    import pandas as pd

FONT = {"family": "Helvetica, Arial, sans-serif", "size": 14, "color": "#222222"}
LINE_CHARACTERS = 130
BAND_ALPHA = 0.18


def interactive(results: pd.DataFrame, title: str = "") -> Any:
    """The plotly figure; ValueError if nothing is finished or nothing rewound."""
    from plotly.subplots import make_subplots

    metrics = panels(results)
    figure = make_subplots(rows=1, cols=len(metrics), horizontal_spacing=0.09)
    for column, metric in enumerate(metrics, start=1):
        drawn, factor = curves(results, metric), scale(results, metric)
        for curve in drawn:
            look = style(curve, unstyled(drawn))
            figure.add_traces(_traces(curve, look, factor, first=column == 1), rows=1, cols=column)
        for name, value in references(results, metric).items():
            line = {"color": "#222222", "width": 1, "dash": "dot"}
            figure.add_hline(factor * value, line=line, annotation_text=name, annotation_position="top right", row=1, col=column)
        figure.update_xaxes(title_text=fraction_label(results), row=1, col=column)
        figure.update_yaxes(title_text=axis_label(results, metric), row=1, col=column)
    _lay_out(figure, results, metrics, title or headline(results))
    return figure


def _traces(curve: Curve, look: Style, factor: float, *, first: bool) -> list[Any]:
    import plotly.graph_objects as objects

    at, mean = 100 * np.array(curve.fractions), factor * curve.mean
    descending = curve.direction == "descending"
    group = {"legendgroup": curve.label}
    many = len(curve.values) > 1
    spread = factor * (curve.spread if many else curve.errors[0])
    line = objects.Scatter(
        x=at,
        y=mean,
        name=curve.label,
        mode="lines+markers",
        showlegend=first,
        line={"color": look.colour, "width": 2.2, "dash": "dash" if descending else "solid"},
        marker={"symbol": f"{look.symbol}-open" if descending and look.symbol != "x" else look.symbol, "size": 9},
        error_y=None if many else {"array": spread, "thickness": 1.2, "width": 3},
        customdata=spread,
        hovertemplate="%{x:g} % rewound: %{y:.4g} ± %{customdata:.2g}<extra>%{fullData.name}</extra>",
        **group,
    )
    return [_band(at, mean, spread, look, group), line] if many else [line]


def _band(at: Any, mean: Any, spread: Any, look: Style, group: dict[str, str]) -> Any:
    """One standard deviation around the mean, where it is known."""
    import plotly.graph_objects as objects

    known = np.isfinite(mean) & np.isfinite(spread)
    at, low, high = at[known], (mean - spread)[known], (mean + spread)[known]
    red, green, blue = (int(look.colour[start : start + 2], 16) for start in (1, 3, 5))
    return objects.Scatter(
        x=np.concatenate([at, at[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},{BAND_ALPHA})",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        **group,
    )


def _lay_out(figure: Any, results: pd.DataFrame, metrics: list[str], title: str) -> None:
    text = "<br>".join(textwrap.wrap(caption(results, curves(results, metrics[0])), LINE_CHARACTERS))
    note = {"text": text, "showarrow": False, "xref": "paper", "yref": "paper", "align": "left"}
    place = {"x": 0, "y": -0.3, "xanchor": "left", "yanchor": "top", "font": {"size": 12, "color": "#555555"}}
    heading = "<br>".join(textwrap.wrap(title, LINE_CHARACTERS))
    figure.add_annotation({**note, **place})
    figure.update_xaxes(range=[-3, 103], showgrid=True, gridcolor="#E6E6E6", linecolor="#444444", zeroline=False)
    figure.update_yaxes(showgrid=True, gridcolor="#E6E6E6", linecolor="#444444", zeroline=False)
    figure.update_layout(
        title={"text": f"<b>{heading}</b>", "x": 0.01, "xanchor": "left"},
        font=FONT,
        plot_bgcolor="white",
        paper_bgcolor="white",
        legend={"orientation": "h", "y": -0.16, "x": 0, "xanchor": "left"},
        margin={"l": 70, "r": 30, "t": 90, "b": 170},
    )
