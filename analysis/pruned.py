"""Models with fewer layers: which strategies a study chose layers by, and what each loses with every layer that goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import captions, palette
from analysis.drawing import Look, Values
from analysis.errors import Errors
from analysis.spectral import distinguished, measure_text
from cpt_lab.interventions.prune_layers import FirstLayers, PruneLayers
from cpt_lab.specs import Checkpoint, Evaluation, Patched, Ranking, key
from cpt_lab.store import read_json

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results
    from cpt_lab.study import Point

NEEDS = "evaluations with intervention=prune_layers (experiments prune_MODEL)"
LAST, RANDOM, LISTED = "last layers", "random layers", "layers by a list"
ALPHAS = ("pl_alpha", "weighted_alpha", "rank_decay_alpha")  # which of them L's is, its page does not say
LOOKS = {LAST: Look("#222222", "solid", "o"), RANDOM: palette.CRITERIA["random"], LISTED: palette.OTHERS[2]}


@dataclass(frozen=True)
class Strategy:
    """What is left of a metric with so many layers less: a place per count, the mean over seeds where layers were drawn."""

    label: str
    look: Look
    counts: Values
    values: Values
    errors: Values  # paired standard errors over documents, of several seeds their deviation; nan where there is none
    seeds: int
    ranking: Ranking | None

    @property
    def is_spectral(self) -> bool:
        """Whether its layers are chosen by an exponent."""
        return self.ranking is not None and bool({self.ranking.criterion, self.ranking.column} & set(ALPHAS))

    def at(self, count: float) -> float:
        """The value with so many layers less; nan if that was not measured."""
        there = np.flatnonzero(self.counts == count)
        return float(self.values[there[0]]) if len(there) else float("nan")


@dataclass(frozen=True)
class Model:
    """A checkpoint whose layers were pruned."""

    label: str
    tuned: Checkpoint
    unedited: float  # the metric with all layers; nan if it was not scored
    strategies: tuple[Strategy, ...]

    @property
    def counts(self) -> list[int]:
        """How many layers went, 0 left out."""
        return sorted({int(count) for one in self.strategies for count in one.counts if count > 0})


def models(results: Results, metric: str) -> list[Model]:
    """Every pruned checkpoint with its strategies; ValueError for none, and naming the protocols where there are several."""
    captions.one_protocol(results.points)
    rows = _rows(results, metric)
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault(row.of, []).append(row)
    if not any(np.isfinite(row.value) for row in rows):
        state = "finished " if rows else ""
        raise ValueError(f"study {results.name!r} has no {state}model with fewer layers: it needs {NEEDS}")
    labels = distinguished([{"model": own[0].tuned.shape.name, "checkpoint": captions.short(of)} for of, own in found.items()])
    errors = Errors(results, metric)
    return [_model(label, own, results, metric, errors) for label, own in zip(labels, found.values(), strict=True)]


@dataclass(frozen=True)
class _Row:
    """A pruned point."""

    of: str
    tuned: Checkpoint
    strategy: str
    ranking: Ranking | None
    count: int
    value: float
    key: str
    unedited: str


def _rows(results: Results, metric: str) -> list[_Row]:
    table = results.points
    known: dict[tuple[str, str], Mapping[Any, Any]] = {(row["study"], row["name"]): row for row in table.to_dict("records")}
    pairs = ((study.name, point) for study in results.studies for point in study.points)
    return [row for study, point in pairs for row in _row(point, known[study, point.name], metric)]


def _row(point: Point, row: Mapping[Any, Any], metric: str) -> Iterator[_Row]:
    checkpoint = point.spec.checkpoint if isinstance(point.spec, Evaluation) else None
    if not isinstance(checkpoint, Patched) or len(checkpoint.interventions) != 1:
        return
    (change,) = checkpoint.interventions
    if isinstance(change, PruneLayers):
        strategy, ranking, count = _strategy(change, point.config.get("intervention", {}))
        value = row.get(metric)
        known = float("nan") if value is None else float(value)
        yield _Row(key(checkpoint.tuned), checkpoint.tuned, strategy, ranking, count, known, row["key"], row["unedited"])


def _strategy(change: PruneLayers, settings: Mapping[str, Any]) -> tuple[str, Ranking | None, int]:
    """(in words, the ranking if there is one, how many layers go)."""
    select = change.select
    zone = int(settings.get("protect") or 0)
    kept = f", {zone} at either end kept" if zone else ""
    if isinstance(select, FirstLayers):
        ranking = select.ranking
        kept = f", {select.protect} at either end kept" if select.protect else ""
        return f"{measure_text(ranking.column or ranking.criterion)}, {ranking.direction}{kept}", ranking, select.count
    words = {"last_n": LAST + kept, "random": RANDOM + kept}
    return (LISTED if settings.get("layers") else words.get(str(settings.get("by")), LISTED)), None, len(select.layers)


def _model(label: str, rows: list[_Row], results: Results, metric: str, errors: Errors) -> Model:
    unedited = _value(results, rows[0].unedited, metric)
    own: dict[str, list[_Row]] = {}
    for row in rows:
        own.setdefault(row.strategy, []).append(row)
    looks = palette.series(list(own), {name: LOOKS[start] for name in own for start in LOOKS if name == start})
    made = [_one(name, mine, looks[name], unedited, errors) for name, mine in own.items()]
    return Model(label, rows[0].tuned, unedited, tuple(made))


def _one(name: str, rows: list[_Row], look: Look, unedited: float, errors: Errors) -> Strategy:
    """A strategy from no layer less, which is the unedited model, to the most."""
    counts = sorted({row.count for row in rows})
    values, spreads, most = [unedited], [0.0], 1
    for count in counts:
        mine = [row for row in rows if row.count == count and np.isfinite(row.value)]
        scores = np.array([row.value for row in mine])
        most = max(most, len(mine))
        values.append(float(scores.mean()) if len(mine) else float("nan"))
        paired = errors.between(mine[0].key, mine[0].unedited) if len(mine) == 1 else float("nan")
        spreads.append(float(scores.std(ddof=1)) if len(mine) > 1 else paired)
    direction = rows[0].ranking.direction if rows[0].ranking else "ascending"
    shown = palette.directed(look, direction) if rows[0].ranking else replace(look, dash="dotted" if name.startswith(RANDOM) else "solid")
    places = np.array([0, *counts], dtype=np.float64)
    return Strategy(name, shown, places, np.array(values), np.array(spreads), most, rows[0].ranking)


def _value(results: Results, of: str, metric: str) -> float:
    """A metric of an evaluation by its key, a point of these studies or not."""
    file = results.store.root / Evaluation.FOLDER / of / "product" / "results.json"
    if not results.has(of) or not file.exists():
        return float("nan")
    value = read_json(file)["metrics"].get(metric, {}).get("value")
    return float("nan") if value is None else float(value)


def perplexity(table: pd.DataFrame, asked: str | None) -> str:
    """The metric asked for, or the primary one's perplexity by bytes, if it has one, or itself."""
    from analysis import metrics

    if asked:
        return metrics.panels(table, asked)[0]
    first = metrics.panels(table)[0]
    beside = f"{first.split('/')[0]}/byte_perplexity"
    return beside if beside in table.attrs["n"] else first
