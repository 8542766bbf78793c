"""How many singular values lie where: a bar per layer over exponential bins, of base, tuned and delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import palette
from analysis.captions import sentences
from analysis.drawing import Axis, Bars, Drawing, Look, Panel, Values
from analysis.spectral import chosen_roles, of_role, role_text
from analysis.spectral_triples import Triple, name_of, triples

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

SHOWS = "counts of singular values in exponential bins, a bar per layer: base, tuned and delta"
PAPERS = ("P appendix D, cluster bar charts",)
NEEDS = (
    "the weights of two checkpoints and their delta as three tables with indices (target=spectra, spectra.indices=true, with "
    "spectra.of=base and spectra.of=tuned, spectra.against=null, and with spectra.of=tuned spectra.against=base)"
)


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per pair of checkpoints, a row of three panels per role."""
    found = triples(results, indices=True)
    return [_drawing(triple, settings, name_of("spectra_bars", place, len(found))) for place, triple in enumerate(found)]


def by_layer(frame: pd.DataFrame, role: str) -> dict[int, Values]:
    """The singular values of a role layer by layer; of heads the mean over the heads of those of one place (P appendix D)."""
    rows = of_role(frame, role).groupby(["layer", "index"])["singular_value"].mean()
    return {int(str(layer)): values.to_numpy(np.float64) for layer, values in rows.groupby(level="layer")}


def edges(values: Sequence[Values], bins: int) -> Values:
    """The bounds of bins of equal ratio that hold all positive values."""
    every = np.concatenate(values)
    positive = every[every > 0]
    if not len(positive):
        return np.geomspace(1.0, 10.0, bins + 1)
    low, high = positive.min(), positive.max()
    return np.geomspace(low, high if high > low else 2 * low, bins + 1)


def counts(values: Values, bounds: Values) -> Values:
    """How many of the values lie in each bin; those of zero lie in none."""
    bins = np.clip(np.searchsorted(bounds, values[values > 0], side="right") - 1, 0, len(bounds) - 2)
    return np.bincount(bins, minlength=len(bounds) - 1).astype(np.float64)


def _drawing(triple: Triple, settings: Mapping[str, Any], name: str) -> Drawing:
    frames = {part: one.indices() for part, one in triple.members.items()}
    roles = chosen_roles(settings["roles"], list(triple.members.values()))
    values = {(part, role): by_layer(frame, role) for part, frame in frames.items() for role in roles}
    rows = tuple(_row({part: values[part, role] for part in frames}, role, int(settings["bins"])) for role in roles)
    zeros = sum(int((found <= 0).sum()) for layers in values.values() for found in layers.values())
    said = sentences(
        "Bins of equal ratio, the same for the three of a matrix; a bar per layer, blue in the first to red in the last",
        "Of attention the mean over the heads of a layer, value by value",
        f"{zeros} values of zero are in no bin" if zeros else "",
        triple.sources(),
    )
    return Drawing(name, f"Where the singular values lie: {triple.label}", said, rows)


def _row(values: Mapping[str, Mapping[int, Values]], role: str, bins: int) -> tuple[Panel, ...]:
    bounds = edges([found for layers in values.values() for found in layers.values()], bins)
    return tuple(_panel(layers, bounds, f"{role_text(role)}: {part}") for part, layers in values.items())


def _panel(layers: Mapping[int, Values], bounds: Values, title: str) -> Panel:
    step = float(np.log10(bounds[1] / bounds[0]))
    centres, width = np.log10(bounds[:-1]) + step / 2, 0.9 * step / len(layers)
    last = max(layers)
    bars = tuple(
        Bars(
            f"layer {layer}",
            centres,
            counts(found, bounds),
            Look(palette.layer_colour(layer, last + 1)),
            width=width,
            offset=width * (place - (len(layers) - 1) / 2),
            in_legend=layer in (0, last),
        )
        for place, (layer, found) in enumerate(layers.items())
    )
    powers = np.arange(np.ceil(np.log10(bounds[0])), np.floor(np.log10(bounds[-1])) + 1)
    ticks = tuple((float(power), f"1e{int(power)}") for power in powers) if len(powers) > 1 else _few(bounds)
    return Panel(bars, title, Axis("singular value", ticks=ticks), Axis("number of values"))


def _few(bounds: Values) -> tuple[tuple[float, str], ...]:
    """Marks of an axis that spans little more than a power of ten."""
    return tuple((float(np.log10(bound)), f"{bound:.3g}") for bound in bounds[:: max(1, len(bounds) // 4)])
