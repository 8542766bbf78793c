"""Scores and lengths of answers of post-trained models, untouched and edited, as tables (T tables 1, 2 and 5 to 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.captions import missing, sentences, short
from analysis.drawing import Cell, Sheet
from analysis.edited import ORIGINAL, Group, groups, same
from cpt_lab.evaluation.statistics import paired_difference, standard_error
from cpt_lab.specs import Evaluation, Intervention, key
from cpt_lab.study import scores

if TYPE_CHECKING:
    import pandas as pd

    from analysis.results import Found, Results


def score_sheet(results: Results, edits: Sequence[type[Intervention]], *, name: str, title: str, needs: str) -> Sheet:
    """A row per model and edit, two columns per task: its first metric, in percent if it is a share of documents, and the difference."""
    found = _one_protocol(results, edits, needs)
    metrics = _first_metrics(results, found)
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    headings: list[tuple[int, str]] = []
    for group in found:
        headings.append((len(rows), group.label))
        reference = None if group.original is None else _documents(results, group.original)
        for text, point in group.every:
            mine, told = _documents(results, point), scores(results.store, point.spec)["metrics"]
            before = None if text == ORIGINAL else reference
            cells = tuple(cell for metric in metrics for cell in _score(told.get(metric), mine, before, metric))
            rows.append((text, cells))
    said = _said(results, found, "deviation of repetitions where a task has them, else standard error over documents")
    return Sheet(
        name,
        title,
        said,
        ("model", *(word for metric in metrics for word in (_heading(metric), "to the original"))),
        tuple(rows),
        groups=tuple(headings),
    )


def length_sheet(results: Results, edits: Sequence[type[Intervention]], *, name: str, title: str, needs: str) -> Sheet:
    """The mean number of tokens that a model writes for an answer, a column per task in which it writes."""
    found = _one_protocol(results, edits, needs)
    tasks = [task for task in found[0].edited[0][1].spec.protocol.tasks if task.kind != "perplexity"]
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    headings: list[tuple[int, str]] = []
    for group in found:
        headings.append((len(rows), group.label))
        for text, point in group.every:
            table = _documents(results, point)
            rows.append((text, tuple(_length(table, task.name, int(getattr(task, "repeats", 1))) for task in tasks)))
    kept = [place for place in range(len(tasks)) if any(cells[place].value is not None for _, cells in rows)]
    if not kept:
        raise ValueError(
            f"no task of protocol {found[0].edited[0][1].spec.protocol.name} has answers that a model writes: there are no lengths"
        )
    said = _said(results, found, "standard error over documents")
    columns = ("model", *(f"{tasks[place].name} [tokens]" for place in kept))
    return Sheet(name, title, said, columns, tuple((text, tuple(cells[place] for place in kept)) for text, cells in rows), tuple(headings))


def _one_protocol(results: Results, edits: Sequence[type[Intervention]], needs: str) -> list[Group[Evaluation]]:
    found = groups(results, Evaluation, edits, needs=needs)
    same([point.spec.protocol for group in found for _, point in group.every], "protocols")
    return found


def _first_metrics(results: Results, found: Sequence[Group[Evaluation]]) -> list[str]:
    """The first metric of every task, in the order of the protocol; of a perplexity bits per byte, which can be paired."""
    told = scores(results.store, found[0].edited[0][1].spec)["metrics"]
    tasks = dict.fromkeys(name.split("/")[0] for name in told)
    of_task = {task: [name for name in told if name.split("/")[0] == task] for task in tasks}
    return [next((name for name in names if name.endswith("/bits_per_byte")), names[0]) for names in of_task.values()]


def _heading(metric: str) -> str:
    task, _, name = metric.partition("/")
    return f"{task} {name.replace('_', ' ')}"


def _documents(results: Results, point: Found[Evaluation]) -> pd.DataFrame:
    return results.documents(key(point.spec))


def _score(told: dict[str, Any] | None, mine: pd.DataFrame, original: pd.DataFrame | None, metric: str) -> tuple[Cell, Cell]:
    """The value with its error, and the paired difference to the untouched model."""
    if told is None or told["value"] is None:
        return Cell(None), Cell(None)
    share = bool(told["higher_is_better"]) and 0 <= told["value"] <= 1
    scale, digits = (100.0, 1) if share else (1.0, 3)
    error = told.get("std", told["stderr"])
    value = Cell(scale * told["value"], None if error is None else scale * error, digits)
    return value, Cell(None) if original is None else _difference(mine, original, metric, scale, digits)


def _difference(mine: pd.DataFrame, original: pd.DataFrame, metric: str, scale: float, digits: int) -> Cell:
    task, _, column = metric.partition("/")
    if column not in mine or column not in original:
        return Cell(None)
    ours, theirs = (table[table["task"] == task].groupby("document")[column].mean().dropna() for table in (mine, original))
    shared = ours.index.intersection(theirs.index)
    if shared.empty:
        return Cell(None)
    found = paired_difference(ours.loc[shared].to_numpy(np.float64), theirs.loc[shared].to_numpy(np.float64))
    return Cell(scale * found.mean, None if found.stderr is None else scale * found.stderr, digits)


def _length(table: pd.DataFrame, task: str, repeats: int) -> Cell:
    """Tokens of an answer: a document's are those of all its repetitions together."""
    rows = table[(table["task"] == task) & table["answer"].notna()]
    if rows.empty:
        return Cell(None)
    lengths = rows["tokens"].to_numpy(np.float64) / repeats
    return Cell(float(lengths.mean()), standard_error(lengths), 1)


def _said(results: Results, found: Sequence[Group[Evaluation]], errors: str) -> str:
    protocol = found[0].edited[0][1].spec.protocol
    told = scores(results.store, found[0].edited[0][1].spec)["metrics"]
    counts = {name.split("/")[0]: metric["n"] for name, metric in told.items()}
    sizes = ", ".join(f"{count} of {task}" for task, count in counts.items())
    without = [group.label for group in found if group.original is None]
    return sentences(
        f"Protocol {protocol.name} ({short(key(protocol))}), documents: {sizes}",
        f"±: {errors}; differences: mean and standard error over the same documents",
        f"The untouched model is not in the study: {', '.join(without)}" if without else "",
        missing(results.points),
    )
