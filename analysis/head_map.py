"""The map of a ranking: every unit's score by layer and head (P figure 4's form), for print and as a page to explore."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.curve_style import headline
from analysis.rewind_curve import DPI, FACE, atomically
from cpt_lab.specs import Ranking

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLOURS = {"diverging": ("RdBu_r", "RdBu"), "sequential": ("viridis", "Viridis")}  # matplotlib's and plotly's names
CELL = 0.27  # inches
LARGEST = (7.0, 9.0)  # inches of a panel, width and height
MARGIN = {"left": 0.8, "right": 1.3, "above": 0.55, "below": 0.75}
TITLE_WIDTH = 12  # characters per inch
PARTS = {"head": "head", "matrix": "role", "layer": ""}


def write(results: pd.DataFrame, folder: Path, *, title: str = "") -> list[Path]:
    """Write head_map_<ranking>.png and .html (complete in itself) for every finished ranking of a `results.frame`; their paths.

    Both directions of a criterion have the same scores and share one map. ValueError if no ranking is finished.
    """
    found = {_name(ranking): (ranking, path) for ranking, path in results.attrs.get("rankings", [])}
    if not found:
        raise ValueError(f"study {results.attrs.get('study', '')!r} has no finished ranking: there is no map to draw")
    title = title or headline(results)
    return [file for name, (ranking, path) in found.items() for file in _write(ranking, path, folder / f"head_map_{name}", title=title)]


def grid(ranking: Ranking, product: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The scores of a finished ranking as (num_layers, units of a layer)."""
    import pandas as pd

    table = pd.read_parquet(product / "scores.parquet")
    return table["score"].to_numpy(np.float64).reshape(ranking.shape.num_layers, len(ranking.parts))


def printed(ranking: Ranking, scores: np.ndarray[Any, Any]) -> Figure:
    """The map for print: layers upwards, red above and blue below zero where scores have both signs."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = scores.shape
    width, height = min(LARGEST[0], max(2.6, CELL * columns)), min(LARGEST[1], max(1.8, CELL * rows))
    heading = textwrap.wrap(_heading(ranking), int(TITLE_WIDTH * (width + MARGIN["left"] + MARGIN["right"])))
    above = MARGIN["above"] + 0.2 * (len(heading) - 1)
    whole = (width + MARGIN["left"] + MARGIN["right"], height + above + MARGIN["below"])
    kind, limits = _scale(scores)
    with matplotlib.rc_context({**FACE, "axes.grid": False, "font.size": 9.0}):
        figure = Figure(figsize=whole)
        axis = figure.add_axes((MARGIN["left"] / whole[0], MARGIN["below"] / whole[1], width / whole[0], height / whole[1]))
        drawn = axis.imshow(scores, cmap=COLOURS[kind][0], vmin=limits[0], vmax=limits[1], origin="lower", aspect="auto")
        axis.set_ylabel("layer")
        axis.set_xlabel(PARTS[ranking.unit])
        axis.set_xticks(*_ticks(ranking))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        bar = figure.add_axes(((MARGIN["left"] + width + 0.15) / whole[0], MARGIN["below"] / whole[1], 0.14 / whole[0], height / whole[1]))
        figure.colorbar(drawn, cax=bar, label=_words(ranking))
        figure.text(0.16 / whole[0], 1 - 0.14 / whole[1], "\n".join(heading), va="top", fontsize=10.5, fontweight="bold", color="#111111")
    return figure


def interactive(ranking: Ranking, scores: np.ndarray[Any, Any], question: str = "") -> Any:
    """The map as a plotly page, every unit's score and place in the order under the pointer."""
    import plotly.graph_objects as objects

    kind, (low, high) = _scale(scores)
    part = PARTS[ranking.unit]
    unit = f", {part} %{{x}}" if part else ""
    drawn = objects.Heatmap(
        z=scores,
        x=[str(name) for name in ranking.parts],
        colorscale=COLOURS[kind][1],
        reversescale=kind == "diverging",
        zmin=low,
        zmax=high,
        customdata=_places(scores),
        hovertemplate=f"layer %{{y}}{unit}: %{{z:.4g}}<br>place %{{customdata}} from the highest<extra></extra>",
        colorbar={"title": {"text": _words(ranking), "side": "right"}},
    )
    figure = objects.Figure(drawn)
    figure.update_xaxes(title_text=part, type="category")
    figure.update_yaxes(title_text="layer")
    heading = {"text": f"<b>{_heading(ranking)}</b>", "x": 0.01, "xanchor": "left", "subtitle": {"text": question}}
    figure.update_layout(title=heading, plot_bgcolor="white", paper_bgcolor="white")
    return figure


def _write(ranking: Ranking, product: Path, stem: Path, *, title: str) -> list[Path]:
    scores = grid(ranking, product)
    figure, page = printed(ranking, scores), interactive(ranking, scores, title)
    html = page.to_html(include_plotlyjs=True, full_html=True, div_id="head_map", default_height="720px")
    return [
        atomically(stem.with_name(f"{stem.name}.png"), lambda path: figure.savefig(path, dpi=DPI, format="png")),
        atomically(stem.with_name(f"{stem.name}.html"), lambda path: path.write_text(html)),
    ]


def _scale(scores: np.ndarray[Any, Any]) -> tuple[str, tuple[float, float]]:
    """How to colour: zero in the middle where scores have both signs; and the limits."""
    known = scores[np.isfinite(scores)]
    low, high = float(known.min()), float(known.max())
    if low < 0 < high:
        widest = max(-low, high)
        return "diverging", (-widest, widest)
    return "sequential", (low, high)


def _places(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Each unit's place in descending order, from 1; equal scores as in the order itself."""
    places = np.empty(scores.size, dtype=int)
    places[np.argsort(-scores.ravel(), kind="stable")] = np.arange(1, scores.size + 1)
    return places.reshape(scores.shape)


def _ticks(ranking: Ranking) -> tuple[list[int], list[str]]:
    """All roles by name, every so many heads by number, nothing under layers."""
    if ranking.unit != "head":
        return list(range(len(ranking.parts))), [str(part) if ranking.unit == "matrix" else "" for part in ranking.parts]
    step = max(1, -(-ranking.shape.num_heads // 16))
    return list(range(0, ranking.shape.num_heads, step)), [str(head) for head in range(0, ranking.shape.num_heads, step)]


def _heading(ranking: Ranking) -> str:
    return f"{_words(ranking)}, every {ranking.unit} of {ranking.shape.name}"


def _words(ranking: Ranking) -> str:
    seed = "" if ranking.seed is None else f" (seed {ranking.seed})"
    return f"{ranking.criterion} {ranking.column or ''}".strip().replace("_", " ") + seed


def _name(ranking: Ranking) -> str:
    """A file name that rankings with the same scores share."""
    return ranking.label().replace(f"-{ranking.direction}", "")
