"""How many singular values lie where: bars over exponential bins, of base, tuned and delta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.drawing import Axis, Bars, Drawing, Panel, Values, grid
from analysis.spectral import chosen_roles, of_role, role_text, sources
from analysis.spectral_triples import LOOKS, Triple, name_of, triples

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Results

SHOWS = "counts of singular values in exponential bins: base, tuned and delta"
PAPERS = ("P appendix D, cluster bar charts",)
NEEDS = (
    "the weights of two checkpoints and their delta as three tables with indices (target=spectra, spectra.indices=true, with "
    "spectra.of=base and spectra.of=tuned, spectra.against=null, and with spectra.of=tuned spectra.against=base)"
)


def build(results: Results, settings: Mapping[str, Any]) -> list[Drawing]:
    """A figure per pair of checkpoints, a panel per role; of all layers, or of settings.layer."""
    found = triples(results, indices=True)
    return [_drawing(triple, settings, name_of("spectra_bars", place, len(found))) for place, triple in enumerate(found)]


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
    frames = {part: _rows(one.indices(), settings["layer"]) for part, one in triple.members.items()}
    roles = chosen_roles(settings["roles"], list(triple.members.values()))
    panels = [_panel({part: _values(frame, role) for part, frame in frames.items()}, role, int(settings["bins"])) for role in roles]
    layers = "all layers" if settings["layer"] is None else f"layer {settings['layer']}"
    zeros = sum(int((_values(frame, role) <= 0).sum()) for frame in frames.values() for role in roles)
    left = f" {zeros} values of zero are in no bin." if zeros else ""
    said = f"Singular values of {layers}, heads of attention one by one; bins of equal ratio.{left} {sources(triple.members.values())}."
    return Drawing(name, f"Where the singular values lie: {triple.label}", said, grid(panels, 2), panel_size=(4.6, 2.4))


def _panel(values: Mapping[str, Values], role: str, bins: int) -> Panel:
    bounds = edges(list(values.values()), bins)
    ratio = bounds[1] / bounds[0]
    centres = np.log10(bounds[:-1] * np.sqrt(ratio))
    step = float(np.log10(ratio))
    bars = tuple(
        Bars(part, centres, counts(found, bounds), LOOKS[part], width=0.28 * step, offset=0.3 * step * (turn - 1))
        for turn, (part, found) in enumerate(values.items())
    )
    marks = np.arange(np.ceil(np.log10(bounds[0])), np.floor(np.log10(bounds[-1])) + 1)
    ticks = tuple((float(power), f"1e{int(power)}") for power in marks) if len(marks) > 1 else _few(bounds)
    return Panel(bars, role_text(role), Axis("singular value", ticks=ticks), Axis("number of values"))


def _few(bounds: Values) -> tuple[tuple[float, str], ...]:
    """Marks of an axis that spans little more than a power of ten."""
    return tuple((float(np.log10(bound)), f"{bound:.3g}") for bound in bounds[:: max(1, len(bounds) // 4)])


def _rows(frame: pd.DataFrame, layer: int | None) -> pd.DataFrame:
    kept = frame if layer is None else frame[frame["layer"] == layer]
    if kept.empty:
        raise ValueError(f"there is no layer {layer}: choose one from 0 to {int(frame['layer'].max())}")
    return kept


def _values(frame: pd.DataFrame, role: str) -> Values:
    return of_role(frame, role)["singular_value"].to_numpy(np.float64)
