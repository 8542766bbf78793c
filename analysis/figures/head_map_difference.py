"""Head maps of several tuned models beside each other, and what each differs from the first by (P figures 3 and 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import captions
from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.figures import head_map
from analysis.lineage import called
from analysis.marks import heat_limits
from analysis.results import Results, SpectraOf
from cpt_lab.specs import ModelShape, Ranking, TrainedCheckpoint, key

SHOWS = "maps of one score for several tuned models (agreement with the base by domain), and their differences to the first"
PAPERS = ("P figure 3", "P figure 12")
NEEDS = "the same criterion ranked for two models, or spectra of two models against their base (figure STUDY STUDY takes both)"
MOST_COLUMNS = 4


@dataclass(frozen=True)
class Map:
    """A score of every head of one model, and what the model is called."""

    label: str
    cells: NDArray[np.float64]  # layers x heads
    identity: str


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per criterion and one of the measure of spectra; ValueError if none is there for two models."""
    groups = {**_of_rankings(results, settings["criterion"]), **_of_spectra(results, settings["measure"], settings["role"])}
    drawn = [_drawing(name, maps, results) for name, maps in groups.items() if len(maps) > 1]
    if not drawn:
        raise ValueError(f"study {results.name!r} has no map of heads for two models: it needs {NEEDS}")
    return drawn


def _of_rankings(results: Results, wanted: str | None) -> dict[str, list[Map]]:
    """Criterion and shape -> the maps of different models."""
    found: dict[str, dict[str, Map]] = {}
    for ranking, product in results.rankings:
        if ranking.unit != "head" or ranking.criterion == "random" or wanted not in (None, ranking.criterion):
            continue
        source = key(ranking.but(direction="ascending"))
        of_shape = f"{head_map.name(ranking)} {_sizes(ranking.shape)}"
        found.setdefault(of_shape, {}).setdefault(source, Map(_model(ranking), head_map.scores(ranking, product), source))
    return {name.split(" ")[0]: list(maps.values()) for name, maps in found.items()}


def _of_spectra(results: Results, measure: str, role: str) -> dict[str, list[Map]]:
    """The measure of one role of the tables that compare a model with its base."""
    by_base: dict[str, dict[str, list[Map]]] = {}
    for each in results.tables:
        if each.spec.against is not None and measure in each.spec.measures:
            cells = _cells(each, measure, role)
            if cells is not None:
                of_size = by_base.setdefault(_sizes(each.spec.checkpoint.shape), {})
                made = Map(called(each.spec.checkpoint), cells, key(each.spec.checkpoint))
                of_size.setdefault(called(each.spec.against), []).append(made)
    groups = [(place, *group) for place, bases in enumerate(by_base.values()) for group in _groups(bases)]
    return {" ".join(filter(None, (f"{measure}_{role}{f'_{place}' if place else ''}", after))): maps for place, after, maps in groups}


def _groups(by_base: dict[str, list[Map]]) -> list[tuple[str, list[Map]]]:
    """The maps of each base beside each other, with its name; all in one row if there is one base, or a base has one map only."""
    groups = {base: _once(maps) for base, maps in by_base.items()}
    if len(groups) > 1 and all(len(maps) > 1 for maps in groups.values()):
        return [(f"after {base}", maps) for base, maps in groups.items()]
    return [("", _once([each for maps in groups.values() for each in maps]))]


def _cells(table: SpectraOf, measure: str, role: str) -> NDArray[np.float64] | None:
    shape = table.spec.checkpoint.shape
    rows = table.table()
    rows = rows[(rows["role"] == role) & rows["head"].between(0, shape.num_heads - 1)]
    if rows.empty:
        return None
    cells = np.full((shape.num_layers, shape.num_heads), np.nan)
    cells[rows["layer"].to_numpy(int), rows["head"].to_numpy(int)] = rows[measure].to_numpy(float)
    return cells


def _drawing(name: str, maps: Sequence[Map], results: Results) -> Drawing:
    """Maps on one scale in the first row, each minus the first in the second."""
    first, *others = maps[:MOST_COLUMNS]
    score, _, after = name.partition(" ")
    words = score.replace("_", " ")
    shared = heat_limits(Heat(np.concatenate([each.cells.ravel() for each in maps[:MOST_COLUMNS]]).reshape(1, -1)))
    differences = [each.cells - first.cells for each in others]
    widest = heat_limits(Heat(np.concatenate([each.ravel() for each in differences]).reshape(1, -1), diverging=True))
    above = tuple(_panel(each.cells, each.label, words, limits=shared, diverging=False) for each in maps[:MOST_COLUMNS])
    below = tuple(
        _panel(cells, f"{each.label} - {first.label}", "difference", limits=widest, diverging=True)
        for each, cells in zip(others, differences, strict=True)
    )
    left_out = len(maps) - len(maps[:MOST_COLUMNS])
    caption = captions.sentences(
        f"{words} of {first.cells.size} heads. "
        + ", ".join(f"{each.label} ({captions.short(each.identity)})" for each in maps[:MOST_COLUMNS]),
        "One model each: no error is known",
        f"{left_out} more models are left out" if left_out else "",
        captions.missing(results.points),
    )
    return Drawing(
        f"head_map_difference_{name.replace(' ', '_')}",
        f"{words}, model by model and their differences" + (f", {after}" if after else ""),
        caption,
        (above, (None, *below)),
        legend=False,
        panel_size=head_map.size(first.cells),
    )


def _panel(cells: NDArray[np.float64], title: str, label: str, *, limits: tuple[float, float], diverging: bool) -> Panel:
    rows, columns = (tuple(map(str, range(count))) for count in cells.shape)
    heat = Heat(cells, rows=rows, columns=columns, label=label, diverging=diverging, limits=limits)
    return Panel((heat,), title=title, x=Axis("Head"), y=Axis("Layer"))


def _model(ranking: Ranking) -> str:
    """What the model is called that a ranking is of: the tuned one that its first table or its probe looks at."""
    looked_at = ranking.probe.tuned if ranking.probe is not None else ranking.spectra[0].checkpoint if ranking.spectra else None
    start = looked_at.start if isinstance(looked_at, TrainedCheckpoint) else None
    after = f" after {called(start)}" if start is not None else ""
    return "given scores" if looked_at is None else f"{called(looked_at)}{after}"


def _once(maps: list[Map]) -> list[Map]:
    return list({each.identity: each for each in maps}.values())


def _sizes(shape: ModelShape) -> str:
    return f"{shape.num_layers}x{shape.num_heads}"
