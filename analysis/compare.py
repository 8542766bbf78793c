"""Points side by side: what differs first, then every metric, then the paired difference to the first point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cpt_lab.evaluation.statistics import paired_difference
from cpt_lab.specs import Spec, identity, key
from cpt_lab.store import Store
from cpt_lab.study import Point, point_status, resolved, scores

if TYPE_CHECKING:
    import pandas as pd

DOCUMENT = "document"
FEW, WIDEST = 2, 120  # points, characters: more points that do not fit side by side stand one below the other
NOT_PAIRED = ("word_perplexity", "byte_perplexity")  # a document's own can be astronomical: bits_per_byte is their logarithm
MISSING = "-"
NOT_SHOWN = ("kind", "name")  # of specs: they follow from the rest


def compare(store: Store, points: Sequence[Point]) -> pd.DataFrame:
    """A column per point, rows by (section, row): settings that differ, metrics, standard errors, differences to the first point.

    A difference is the mean over the documents that both points were scored on, with its paired standard error and their number: what is
    hard for both cancels, so it is far sharper than the two standard errors suggest. Documents weigh the same: for ratios of totals, such
    as bits per byte, the mean is close to the difference of the two values, not equal to it.
    ValueError for fewer than two points, or if none of the points is finished.
    """
    import pandas as pd

    if len(points) < 2:
        raise ValueError(
            f"{len(points)} point to compare: name at least two points of a study, `python -m cpt_lab status STUDY` lists them"
        )
    specs = resolved(store, list(points))
    columns = {point.name: specs[point.name] for point in points}
    results = {name: scores(store, spec) for name, spec in columns.items()}
    if not any(results.values()):
        raise ValueError(f"none of the points {', '.join(columns)} is finished: run the study first")
    rows = {**_settings(points), **_states(store, columns), **_metrics(results), **_differences(store, columns, results)}
    index = pd.MultiIndex.from_tuples(list(rows), names=["section", "row"])
    return pd.DataFrame(list(rows.values()), index=index, columns=list(columns), dtype=object)


def text(table: pd.DataFrame) -> str:
    """The table of `compare` for the terminal, `value ± error` in one cell: a column per point, or a block per row if that is too wide."""
    lines = [["", *table.columns], *_lines(table)]
    side_by_side = _aligned(lines)
    if len(table.columns) <= FEW or max(map(len, side_by_side.splitlines())) <= WIDEST:
        return side_by_side
    first, *others = lines
    return "\n".join(
        f"{line[0]}\n{_aligned([[f'  {name}', cell] for name, cell in zip(first[1:], line[1:], strict=True)])}" for line in others
    )


def markdown(table: pd.DataFrame) -> str:
    """The same for a note or a pull request."""
    lines = [["", *table.columns], ["---", *("---:" for _ in table.columns)], *_lines(table)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def latex(table: pd.DataFrame) -> str:
    """The same for a paper: a table environment with booktabs' rules."""
    from analysis import sheets
    from analysis.drawing import Cell, Sheet

    rows = tuple((line[0], tuple(map(Cell, line[1:]))) for line in _lines(table))
    caption = "± is the standard error over documents, of differences the paired one."
    return sheets.latex(Sheet("compare", "Points side by side", caption, ("", *map(str, table.columns)), rows))


def csv(table: pd.DataFrame) -> str:
    """The same for programs: every number in full, in a row of its own."""
    return str(table.to_csv())


# ----------------------------------------------------------------------------------------------------------------- rows

Rows = dict[tuple[str, str], list[Any]]


def _settings(points: Sequence[Point]) -> Rows:
    """What varies in the study, then every leaf of the specs that differs."""
    names = list(dict.fromkeys(name for point in points for name in point.varies))
    varied = {name: [point.varies.get(name) for point in points] for name in names}
    leaves = [dict(_leaves(identity(point.spec))) for point in points]
    paths = list(dict.fromkeys(path for leaf in leaves for path in leaf))
    deep = {path: [leaf.get(path) for leaf in leaves] for path in paths if path.split(".")[-1] not in NOT_SHOWN}
    known = [values for values in varied.values() if _differ(values)]
    extra = {path: values for path, values in deep.items() if _differ(values) and values not in known and not _implied(path)}
    shown = {**{name: values for name, values in varied.items() if _differ(values)}, **extra}
    return {("setting", name): values for name, values in shown.items()}


def _states(store: Store, columns: dict[str, Spec]) -> Rows:
    states = [point_status(store, spec).state.value for spec in columns.values()]
    return {("result", "state"): states, ("result", "key"): [key(spec) for spec in columns.values()]}


def _metrics(results: dict[str, dict[str, Any]]) -> Rows:
    rows: Rows = {}
    for name in _metric_names(results):
        found = [result.get("metrics", {}).get(name, {}) for result in results.values()]
        for section, part in (("metric", "value"), ("stderr", "stderr"), ("n", "n")):
            rows[section, name] = [metric.get(part) for metric in found]
    return rows


def _differences(store: Store, columns: dict[str, Spec], results: dict[str, dict[str, Any]]) -> Rows:
    samples = {name: _samples(store, spec) for name, spec in columns.items() if results[name]}
    first, *others = columns
    rows: Rows = {}
    for metric in (name for name in _metric_names(results) if not name.endswith(NOT_PAIRED)):
        triples = [_difference(samples.get(other), samples.get(first), metric) for other in others]
        for section, part in (("difference", 0), ("difference stderr", 1), ("difference n", 2)):
            rows[section, metric] = [None, *(triple[part] for triple in triples)]
    return rows


def _difference(samples: pd.DataFrame | None, first: pd.DataFrame | None, metric: str) -> tuple[float | None, float | None, int]:
    """(mean, paired standard error, n) over the documents of the metric's task that both have."""
    task, _, column = metric.partition("/")
    if samples is None or first is None or column not in samples or column not in first:
        return None, None, 0
    ours, theirs = (table.loc[table["task"] == task, [DOCUMENT, column]] for table in (samples, first))
    pairs = ours.merge(theirs, on=DOCUMENT, suffixes=("", " first"))
    pairs = pairs.replace([np.inf, -np.inf], np.nan).dropna()  # a perplexity may be beyond the floats
    if pairs.empty:
        return None, None, 0
    return paired_difference(pairs[column].to_numpy(float), pairs[f"{column} first"].to_numpy(float))


def _samples(store: Store, spec: Spec) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(store.product(spec) / "samples.parquet")


def _metric_names(results: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results.values() for name in result.get("metrics", {})))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def _differ(values: list[Any]) -> bool:
    return any(value != values[0] for value in values[1:])


def _implied(path: str) -> bool:
    """Spectra and probes are what a criterion reads: their differences follow from the criterion's name."""
    return ".ranking.spectra" in path or ".ranking.probe" in path


# ---------------------------------------------------------------------------------------------------------------- text


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded) + "\n"


def _lines(table: pd.DataFrame) -> Iterator[list[str]]:
    """Rows of cells, the errors beside their values."""
    for section, name in table.index:
        values = list(table.loc[(section, name)])
        if section in ("setting", "result"):
            yield [name, *(_cell(value) for value in values)]
        elif section in ("metric", "difference"):
            error = "stderr" if section == "metric" else "difference stderr"
            label = name if section == "metric" else f"{name}, difference to the first"
            yield [label, *(_pair(*pair, section) for pair in zip(values, table.loc[(error, name)], strict=True))]


def _pair(value: Any, error: Any, section: str) -> str:
    sign = "+" if section == "difference" else ""
    if value is None or np.isnan(value):
        return MISSING
    return f"{value:{sign}.4f}" if error is None or np.isnan(error) else f"{value:{sign}.4f} ± {error:.4f}"


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} values"
    return MISSING if value is None else f"{value:g}" if isinstance(value, float) else str(value)
