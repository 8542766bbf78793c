"""What rewinding each head alone changes, as a map of layers and heads (P figure 16)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import captions, metrics
from analysis.drawing import Axis, Drawing, Heat, Panel
from analysis.errors import Errors
from analysis.figures.head_map import size
from analysis.results import Results
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.specs import Evaluation, Heads, ModelShape, Patched, Ranking, key
from cpt_lab.store import read_json

SHOWS = "the change of quality when each head alone is rewound, with its paired standard error under the pointer"
PAPERS = ("P figure 16",)
NEEDS = "a finished greedy ranking (criterion=greedy), or points that rewind a single head (intervention.heads=[[LAYER,HEAD]])"
Cells = NDArray[np.float64]


@dataclass(frozen=True)
class Map:
    """Changes and their paired errors, layers x heads, of one tuned model and metric; up is better."""

    name: str
    title: str
    metric: str
    changes: Cells
    errors: Cells
    protocol: str
    unit: str  # "%" where the changes are of a share


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A map per greedy ranking and per model with single heads rewound; ValueError if there is neither."""
    found = [*_of_rankings(results), *_of_points(results, settings["metric"])]
    if not found:
        raise ValueError(f"study {results.name!r} has no head rewound alone: it needs {NEEDS}")
    return [_drawing(each, results) for each in found]


def _of_rankings(results: Results) -> list[Map]:
    import pandas as pd

    found = {}
    for ranking, product in results.rankings:
        if ranking.probe is None or ranking.criterion != "greedy" or ranking.unit != "head":
            continue
        table = pd.read_parquet(product / "scores.parquet")
        tuned = Evaluation(checkpoint=ranking.probe.tuned, protocol=ranking.probe.protocol)
        known = read_json(results.store.folder(tuned) / "product" / "results.json")
        metric = ranking.probe.metric or str(known.get("primary", "score"))
        share = _is_share(known, metric)
        factor = 100.0 if share else 1.0
        changes, errors = (
            factor * _grid(ranking.shape, table[name]) if name in table else np.full(_size(ranking.shape), np.nan)
            for name in ("score", "stderr")
        )
        label = f"{ranking.shape.name}, {captions.ranking(ranking)}"
        found[_without_direction(ranking)] = Map(
            "", label, metric, changes, errors, _protocol(ranking.probe.protocol), "%" if share else ""
        )
    return [
        Map(**{**vars(each), "name": "single_head" if len(found) == 1 else f"single_head_{place}"})
        for place, each in enumerate(found.values())
    ]


def _of_points(results: Results, asked: str | None) -> list[Map]:
    """Of points that name one head: their difference to the unedited model's own evaluation."""
    singles: dict[str, list[tuple[Evaluation, tuple[int, int]]]] = {}
    for study in results.studies:
        for point in study.points:
            head = _one_head(point.spec)
            if head is not None and isinstance(point.spec, Evaluation):
                singles.setdefault(key(point.spec.loaded) + key(point.spec.protocol), []).append((point.spec, head))
    maps = [_map(results, specs, results.metric(asked), place) for place, specs in enumerate(singles.values())]
    return [each for each in maps if each is not None]


def _map(results: Results, specs: list[tuple[Evaluation, tuple[int, int]]], metric: str, place: int) -> Map | None:
    first = specs[0][0]
    shape, unedited = first.loaded.shape, first.but(checkpoint=first.loaded)
    known = results.store.folder(unedited) / "product" / "results.json"
    before = read_json(known).get("metrics", {}).get(metric)
    if before is None:
        return None
    errors_of, sign = Errors(results, metric), 1.0 if before["higher_is_better"] else -1.0
    factor = metrics.scale(results.points, metric)
    changes, errors = np.full(_size(shape), np.nan), np.full(_size(shape), np.nan)
    for spec, head in specs:
        after = read_json(results.store.folder(spec) / "product" / "results.json").get("metrics", {}).get(metric)
        if after is not None:
            changes[head] = sign * factor * (after["value"] - before["value"])
            errors[head] = factor * errors_of.between(key(spec), key(unedited))
    if not np.isfinite(changes).any():
        return None
    name = "single_head_points" + (f"_{place}" if place else "")
    unit = metrics.unit(results.points, metric)
    return Map(name, f"{shape.name}, {len(specs)} heads rewound alone", metric, changes, errors, _protocol(first.protocol), unit)


def _drawing(found: Map, results: Results) -> Drawing:
    rows, columns = (tuple(map(str, range(count))) for count in found.changes.shape)
    text = tuple(tuple(f"± {error:.2g}" for error in row) for row in found.errors)
    label = "change [points]" if found.unit else "change"
    heat = Heat(found.changes, rows=rows, columns=columns, label=label, diverging=True, text=text)
    known = found.changes[np.isfinite(found.changes)]
    clear = np.abs(found.changes) > 2 * found.errors
    caption = captions.sentences(
        f"Protocol {found.protocol}",
        found.title,
        f"{known.size} of {found.changes.size} heads; mean absolute change {np.abs(known).mean():.3g}",
        f"{int(clear.sum())} heads differ from the unedited model by more than two paired standard errors; by chance alone about "
        f"{0.05 * known.size:.0f} would",
        captions.missing(results.points),
    )
    panel = Panel((heat,), x=Axis("Head"), y=Axis("Layer"))
    return Drawing(
        found.name,
        f"Each head alone rewound to the base: change of {found.metric}",
        caption,
        ((panel,),),
        legend=False,
        panel_size=size(found.changes),
    )


def _one_head(spec: Any) -> tuple[int, int] | None:
    checkpoint = getattr(spec, "checkpoint", None)
    if not isinstance(checkpoint, Patched) or len(checkpoint.interventions) != 1:
        return None
    (change,) = checkpoint.interventions
    if isinstance(change, Rewind) and isinstance(change.select, Heads) and len(change.select.heads) == 1:
        return change.select.heads[0]
    return None


def _grid(shape: ModelShape, column: Any) -> Cells:
    return np.asarray(column, dtype=np.float64).reshape(_size(shape))


def _size(shape: ModelShape) -> tuple[int, int]:
    return shape.num_layers, shape.num_heads


def _is_share(known: Mapping[str, Any], metric: str) -> bool:
    """Whether the metric is a share of documents, which people read in percent."""
    found = known.get("metrics", {}).get(metric, {})
    return bool(found.get("higher_is_better")) and 0 <= float(found.get("value", 2.0)) <= 1


def _without_direction(ranking: Ranking) -> str:
    return key(ranking.but(direction="ascending"))


def _protocol(protocol: Any) -> str:
    return f"{protocol.name} ({captions.short(key(protocol))})"
