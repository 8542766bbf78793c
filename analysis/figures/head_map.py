"""The map of every finished ranking: each unit's score by layer and head (P figures 3, 4 and 12)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import captions
from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.results import Results
from cpt_lab.specs import Ranking

SHOWS = "the score of every head (matrix, layer) under each criterion, as a map of layers and heads"
PAPERS = ("P figure 3", "P figure 12")
NEEDS = "a finished ranking: any rewind study, or target=rank"
CELL, SMALLEST, LARGEST = 0.27, (2.6, 1.8), (7.0, 9.0)  # inches: a cell; a panel, width and height
PARTS = {"head": "Head", "matrix": "Role", "layer": ""}


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A map per criterion: both directions have the same scores. ValueError if no ranking is finished."""
    found = {name(ranking): (ranking, product) for ranking, product in results.rankings}
    wanted = [word for word in found if settings["criterion"] in (None, found[word][0].criterion)]
    if settings["criterion"] is None:  # a random order has no map worth a look, unless it is the only one
        wanted = [word for word in wanted if found[word][0].criterion != "random"] or wanted
    if not wanted:
        of = f" of {settings['criterion']}" if settings["criterion"] else ""
        raise ValueError(f"study {results.name!r} has no finished ranking{of}: there is no map to draw; it needs {NEEDS}")
    return [_map(*found[word], title=results.question) for word in wanted]


def scores(ranking: Ranking, product: Path) -> NDArray[np.float64]:
    """The scores of a finished ranking as (num_layers, units of a layer)."""
    import pandas as pd

    table = pd.read_parquet(product / "scores.parquet")
    return table["score"].to_numpy(np.float64).reshape(ranking.shape.num_layers, len(ranking.parts))


def places(cells: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each unit's place in descending order, from 1; equal scores as in the order itself, unknown ones last."""
    found = np.empty(cells.size, dtype=np.int64)
    found[np.argsort(-cells.ravel(), kind="stable")] = np.arange(1, cells.size + 1)
    return found.reshape(cells.shape)


def panel(ranking: Ranking, cells: NDArray[np.float64], label: str, *, title: str = "") -> Panel:
    """Layers upwards; red above and blue below zero where scores have both signs."""
    known = cells[np.isfinite(cells)]
    text = tuple(tuple(f"place {place} from the highest" for place in row) for row in places(cells))
    part = PARTS[ranking.unit]
    columns = tuple(map(str, ranking.parts)) if part else ("",)
    rows = tuple(map(str, range(ranking.shape.num_layers)))
    heat = Heat(cells, rows=rows, columns=columns, label=label, diverging=bool(len(known)) and known.min() < 0 < known.max(), text=text)
    return Panel((heat,), title=title, x=Axis(part), y=Axis("Layer"))


def size(cells: NDArray[np.float64]) -> tuple[float, float]:
    """Inches of a panel: cells of one size, within reason."""
    rows, columns = cells.shape
    width, height = (min(high, max(low, CELL * count)) for low, high, count in zip(SMALLEST, LARGEST, (columns, rows), strict=True))
    return width, height


def words(ranking: Ranking) -> str:
    seed = "" if ranking.seed is None else f" (seed {ranking.seed})"
    return f"{ranking.criterion} {ranking.column or ''}".strip().replace("_", " ") + seed


def name(ranking: Ranking) -> str:
    """A file name that rankings with the same scores share."""
    return ranking.label().replace(f"-{ranking.direction}", "")


def _map(ranking: Ranking, product: Path, *, title: str) -> Drawing:
    cells = scores(ranking, product)
    heading = f"{words(ranking)}, every {ranking.unit} of {ranking.shape.name}"
    caption = captions.sentences(captions.ranking(ranking), f"{cells.size} units", title)
    return Drawing(
        f"head_map_{name(ranking)}", heading, caption, ((panel(ranking, cells, words(ranking)),),), legend=False, panel_size=size(cells)
    )
