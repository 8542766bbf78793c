"""Our numbers beside those of the papers: which of them a study's points match, and how far ours are from theirs."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.drawing import Cell, Sheet
from analysis.papers import Printed, numbers
from analysis.papers.measured import Measured, measured
from analysis.results import Results

DIGITS = {"svsm_mean": 4, "alpha_importance_spearman": 2, "auc_difference": 1}


@dataclass(frozen=True)
class Match:
    """One printed number and ours of the same thing; `unsure` names what a study cannot know of its own checkpoints."""

    theirs: Printed
    ours: Measured
    unsure: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """ours - theirs; None where the paper prints a dash."""
        return self.theirs.difference(self.ours.value)


def beside(results: Results) -> list[Match]:
    """Every printed number that a finished part of these results measures too, in the order of the papers.

    A match has the same quantity, and all that the paper says the number is of: model, budgets, edit, criterion, role, task, share. What a
    study cannot know (the data behind a folder of weights) does not stop a match and is named.
    """
    found = list(measured(results))
    return [match for theirs in numbers() for ours in found if (match := _match(theirs, ours)) is not None]


def sheet(results: Results, matches: list[Match] | None = None) -> Sheet:
    """The matches as a table, those of `beside` unless they are known; ValueError if there are none."""
    matches = beside(results) if matches is None else matches
    if not matches:
        raise ValueError(
            f"no number of the papers is of what study {results.name!r} measures: they are of the models, budgets and benchmarks in "
            "docs/experiments.md"
        )
    unsure = sorted({name for match in matches for name in match.unsure})
    note = f" The study cannot know of its own checkpoints: {', '.join(unsure)}; it is taken to be the papers'." if unsure else ""
    errors = sorted({match.theirs.error_is for match in matches if match.theirs.error_is})
    return Sheet(
        name="beside_papers",
        title="Beside the papers",
        caption="Ours ± is the standard error over documents, or over our own repeated runs where there are some; for svsm the spread over "
        f"values and layers. {'; '.join(f'theirs ± is the {error}' for error in errors)}.{note}",
        columns=("number", "theirs", "ours", "ours - theirs", "of", "points"),
        rows=tuple(_row(match) for match in matches),
    )


def _match(theirs: Printed, ours: Measured) -> Match | None:
    if theirs.quantity != ours.quantity or any(name not in ours.of or ours.of[name] not in (None, of) for name, of in theirs.of.items()):
        return None
    return Match(theirs, ours, tuple(name for name in theirs.of if ours.of[name] is None))


def _row(match: Match) -> tuple[str, tuple[Cell, ...]]:
    theirs, ours = match.theirs, match.ours
    digits = DIGITS.get(theirs.quantity, 2)
    unit = f" [{theirs.unit}]" if theirs.unit else ""
    more = {name: of for name, of in ours.of.items() if name not in theirs.of and of is not None and name not in ("pretrain", "edit")}
    points = ours.points[0] if len(ours.points) == 1 else f"{len(ours.points)} points" if ours.points else ""
    return (
        f"{theirs.source}: {theirs.quantity.replace('_', ' ')}{unit}",
        (
            Cell(theirs.text()),
            Cell(ours.value, ours.error, digits),
            Cell(match.difference, ours.error, digits),
            Cell(", ".join({**theirs.of, **more}.values()) or "any model"),
            Cell(points),
        ),
    )
