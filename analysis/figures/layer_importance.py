"""Does a spectral measure of a layer say how much the model needs it? Importance by ablation, and against the measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis import captions, palette
from analysis.drawing import Axis, Bars, Dots, Drawing, Look, Panel, Values
from analysis.lineage import exact
from analysis.results import Found, Results
from analysis.spectral import distinguished, measure_text
from cpt_lab.lifecycle import Importance, importance
from cpt_lab.specs import Correlation, Ranking, key
from cpt_lab.store import read_json

SHOWS = "layers' importance by ablation, alone and against spectral measures, with rank correlations inside the model and over all layers"
PAPERS = ("L figure 9", "L figure 10")
NEEDS = "correlations of layers with criterion=ablation (target=correlate; experiments importance_MODEL)"
ENDS = Look("#6E6E6E", "dotted", "s", filled=False)
CORE = Look("#0072B2", "solid", "o")


@dataclass(frozen=True)
class Scored:
    """A finished correlation: importance by ablation against one measure."""

    measure: str
    ablation: Ranking
    metric: str  # of the ablation, in words
    layers: Values
    errors: Values  # paired standard errors of the importance
    found: Importance
    told: Mapping[str, Any]  # correlation.json: over all layers


def build(results: Results, settings: Mapping[str, Any]) -> Drawing:
    """A row per model: bars, then a panel per measure; ValueError if nothing was correlated with an ablation."""
    scored = [one for found in results.of_kind(Correlation) if (one := _scored(results, found, int(settings["ends"]))) is not None]
    if not scored:
        raise ValueError(f"study {results.name!r} has no finished correlation with the importance of layers: it needs {NEEDS}")
    models: dict[str, list[Scored]] = {}
    for one in scored:
        models.setdefault(key(one.ablation), []).append(one)
    labels = _labels([own[0].ablation for own in models.values()])
    columns = max(len(own) for own in models.values()) + 1
    rows = []
    for label, own in zip(labels, models.values(), strict=True):
        panels: list[Panel | None] = [_bars(own[0], label), *(_scatter(one) for one in own)]
        rows.append(tuple(panels + [None] * (columns - len(panels))))
    caption = _caption(list(zip(labels, models.values(), strict=True)), int(settings["ends"]))
    return Drawing("layer_importance", "Do spectra say which layers matter?", caption, tuple(rows), panel_size=(3.2, 2.8))


def _scored(results: Results, point: Found[Correlation], ends: int) -> Scored | None:
    """The importance and the measure of a correlation of whole layers; None of others. ValueError for ends that leave too few."""
    sides = (("one", point.spec.one), ("other", point.spec.other))
    ablation = next(((name, side) for name, side in sides if side.criterion == "ablation"), None)
    if ablation is None:
        return None
    other = next((name, side) for name, side in sides if name != ablation[0])
    table = pd.read_parquet(point.product / "table.parquet").sort_values("layer")
    scores = pd.read_parquet(results.store.product(ablation[1]) / "scores.parquet").sort_values("layer")
    errors = scores["stderr"].to_numpy(np.float64) if "stderr" in scores else np.zeros(len(scores))
    measure = other[1].column or other[1].criterion
    found = importance(table[other[0]].to_numpy(np.float64), table[ablation[0]].to_numpy(np.float64), ends=ends)
    return Scored(
        measure,
        ablation[1],
        _metric(results, ablation[1]),
        table["layer"].to_numpy(np.float64),
        errors,
        found,
        read_json(point.product / "correlation.json"),
    )


def _labels(rankings: Sequence[Ranking]) -> list[str]:
    facets = []
    for one in rankings:
        assert one.probe is not None
        facets.append({"model": one.shape.name, "checkpoint": exact(one.probe.tuned)})
    return distinguished(facets)


def _bars(one: Scored, label: str) -> Panel:
    marks = []
    for name, look, which in (("layers inside", CORE, one.found.core), ("layers at the ends", ENDS, ~one.found.core)):
        errors = np.nan_to_num(one.errors[which])
        marks.append(Bars(name, one.layers[which], one.found.loss[which], look, errors=errors if errors.any() else None))
    ticks = tuple((layer, f"{layer:.0f}") for layer in one.layers)
    return Panel(tuple(marks), label, Axis("layer", ticks=ticks), Axis(f"worse without the layer: {one.metric}"))


def _scatter(one: Scored) -> Panel:
    depth = len(one.layers)
    marks = []
    for place, layer in enumerate(one.layers):
        inside = bool(one.found.core[place])
        look = Look(palette.layer_colour(int(layer), depth), marker="o" if inside else "s", filled=inside)
        at = slice(place, place + 1)
        text = (f"L{layer:.0f}",)
        marks.append(Dots(f"layer {layer:.0f}", one.found.alpha[at], one.found.loss[at], look, text=text, written=True, in_legend=False))
    scale = Axis("worse without the layer", scale="log" if (one.found.loss > 0).all() else "linear")
    return Panel(tuple(marks), f"rho = {one.found.rho:.2f}, p = {one.found.p:.2g}", Axis(measure_text(one.measure)), scale)


def _metric(results: Results, ranking: Ranking) -> str:
    """What the ablation was measured by, in words: asked for, or the primary one of its protocol."""
    assert ranking.probe is not None
    whole = ranking.needs()[0]
    name = ranking.probe.metric or str(read_json(results.store.product(whole) / "results.json")["primary"])
    return name.replace("/", " ").replace("_", " ")


def _caption(models: Sequence[tuple[str, Sequence[Scored]]], ends: int) -> str:
    said = []
    for label, own in models:
        for one in own:
            told = one.told
            whole = (
                "none"
                if told["spearman"] is None
                else f"{told['spearman']:.2f} (95 % {told['interval'][0]:.2f} to {told['interval'][1]:.2f})"
            )
            said.append(f"{label}, {measure_text(one.measure)}: {whole} of all {len(one.layers)} layers")
    rankings = [own[0].ablation for _, own in models]
    return captions.sentences(
        f"Titles: Spearman's correlation without {ends} layer{'s' if ends != 1 else ''} at either end (hollow squares), p by permutations",
        "; ".join(said),
        "Neighbouring layers are not independent. Bars: paired standard errors over documents",
        "; ".join(
            f"{captions.ranking(one)}, {exact(one.probe.tuned)}, protocol {one.probe.protocol.name}" for one in rankings if one.probe
        ),
    )
