"""Base, tuned and their delta: the three tables of spectra that P compares side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.drawing import Look
from analysis.spectral import Named, short_key, tables
from cpt_lab.specs import key

if TYPE_CHECKING:
    from analysis.results import Results

NEEDS = (
    "the weights of two checkpoints and their delta as three tables of the same measures (target=spectra with spectra.of=base and "
    "spectra.of=tuned, spectra.against=null, and with spectra.of=tuned spectra.against=base; see experiment spectra_1b)"
)
LOOKS = {  # as in P appendix D: the first checkpoint blue, the second red, the delta green
    "base": Look("#0072B2", "solid", "o"),
    "tuned": Look("#C6212B", "dashed", "s"),
    "delta": Look("#009E73", "dotted", "^"),
}


@dataclass(frozen=True)
class Triple:
    """Three tables by what they are of; `label` is that of the delta."""

    label: str
    base: Named
    tuned: Named
    delta: Named

    def sources(self) -> str:
        """The three tables for a caption."""
        return "; ".join(f"{part}: {one.label} ({short_key(one.spec)})" for part, one in self.members.items())

    @property
    def members(self) -> dict[str, Named]:
        return {"base": self.base, "tuned": self.tuned, "delta": self.delta}


def triples(results: Results, *, measures: Sequence[str] = (), indices: bool = False) -> list[Triple]:
    """Every delta whose two checkpoints have tables of their own; ValueError if there is none."""
    deltas = tables(results, kind="deltas", measures=measures, indices=indices, needs=NEEDS)
    weights = {key(one.spec.checkpoint): one for one in tables(results, kind="weights", measures=measures, indices=indices, needs=NEEDS)}
    found = []
    for delta in deltas:
        assert delta.spec.against is not None  # it is a delta
        tuned, base = (weights.get(key(checkpoint)) for checkpoint in (delta.spec.checkpoint, delta.spec.against))
        if tuned is not None and base is not None:
            found.append(Triple(delta.label, base, tuned, delta))
    if not found:
        raise ValueError(f"study {results.name!r} has deltas and weights, but none of the same checkpoints: it needs {NEEDS}")
    return found


def name_of(figure: str, place: int, count: int, *more: str) -> str:
    """The file name of one of several figures."""
    return "_".join([figure, *more, *([str(place + 1)] if count > 1 else [])])
