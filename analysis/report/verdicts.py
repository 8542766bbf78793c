"""Which is best, by how much, and is it more than noise: tables of paired tests with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.drawing import Cell, Sheet
from analysis.orders import Order, difference, directions, orders, scale
from analysis.paired import LEVEL, Test, holm, test
from analysis.results import STDERR, Results, gaps, metric_names

LEAST_P = 0.001
HOW = (
    "paired over the same documents, each counting the same (in bits per byte the scores themselves weigh them by their bytes): McNemar's "
    "exact test where documents are right or wrong, else the t-test"
)


@dataclass(frozen=True)
class Compared:
    """One thing against another: the test, and its p-value after Holm's correction over all that are compared together."""

    name: str
    test: Test
    p: float

    @property
    def more_than_noise(self) -> bool:
        return self.p < LEVEL


@dataclass(frozen=True)
class OrderVerdict:
    """The orders of a rewind study, best first; the best one of every other criterion against the very best."""

    metric: str
    found: tuple[Order, ...]
    others: tuple[Compared, ...]  # the best minus each, in the order of `found`
    directions: tuple[Compared, ...]  # per criterion, descending minus ascending

    @property
    def best(self) -> Order:
        return self.found[0]


@dataclass(frozen=True)
class PointVerdict:
    """Every finished point against its own unedited model, or against the first point where nothing was left unedited."""

    metric: str
    against: str
    found: tuple[Compared, ...]  # by name of the point
    tests: int  # that are corrected together: points of the same weights are one


def of_orders(results: Results, metric: str) -> OrderVerdict | None:
    """None for a study without two orders whose curves are whole."""
    found = orders(results, metric)
    if len(found) < 2:
        return None
    best = found[0]
    rivals = list({order.family: order for order in reversed(found) if order.family != best.family}.values())
    rivals.sort(key=found.index)
    both = directions(found)
    return OrderVerdict(
        metric,
        tuple(found),
        tuple(_corrected([(order.label, difference(best, order)) for order in rivals])),
        tuple(_corrected(list(both.items()))),
    )


def of_points(results: Results, metric: str) -> PointVerdict | None:
    """None where fewer than two distinct results can be paired."""
    table = results.points
    outcomes = results.outcomes(metric)
    done = table[table["state"] == "done"]
    unedited = {str(row["name"]): str(row["unedited"]) for _, row in done.iterrows()} if "unedited" in done else {}
    has_own = any(results.has(of) and of != key for of, key in zip(unedited.values(), done["key"], strict=True))
    if done.empty or outcomes.of(str(done["key"].iloc[0])) is None:
        return None
    first, against = str(done["key"].iloc[0]), "the unedited model" if has_own else str(done["name"].iloc[0])
    pairs = [(str(row["name"]), str(row["key"]), unedited[str(row["name"])] if has_own else first) for _, row in done.iterrows()]
    tests = {(key, of): test(outcomes.of(key), outcomes.of(of)) for key, of in {(key, of) for _, key, of in pairs} if key != of}
    known = {pair: found for pair, found in tests.items() if found is not None}
    if not known:
        return None
    p_values = dict(zip(known, holm([found.p for found in known.values()]), strict=True))
    found = tuple(Compared(name, known[key, of], p_values[key, of]) for name, key, of in pairs if (key, of) in known)
    return PointVerdict(metric, against, found, len(known))


def order_sheet(results: Results, verdict: OrderVerdict) -> Sheet:
    """A row per order."""
    factor, digits = scale(results, verdict.metric), _digits(results, verdict.metric)
    rivals = {compared.name: compared for compared in verdict.others}
    both = {compared.name: compared for compared in verdict.directions}
    rows = []
    for order in verdict.found:
        area = _of_test(difference(order, verdict.best), factor, digits) if order is not verdict.best else Cell(None)
        against, direction = rivals.get(order.label), both.get(order.family)
        error = order.areas.std(ddof=1) / math.sqrt(len(order.areas)) if len(order.areas) > 1 else None
        cells = (
            Cell(factor * order.area, None if error is None else factor * float(error), digits, best=order is verdict.best),
            area,
            Cell(p_text(against.p) if against else None),
            _of_test(direction.test, factor, digits) if direction else Cell(None),
            Cell(p_text(direction.p) if direction else None),
        )
        rows.append((order.label, cells))
    unit = " [% x share]" if factor == 100 else ""
    return Sheet(
        name="orders",
        title=f"Orders by {verdict.metric}",
        caption="Area under the curve of the metric over the share rewound, 0 to 1 (P eq. 17); standard errors and t-tests are paired "
        f"over the same documents, each counting the same. p of the best order against the best of every other criterion, Holm over "
        f"{len(verdict.others)}; of the "
        f"directions against each other (P eq. 18), Holm over {len(verdict.directions)}. {gaps(results.points)}".strip(),
        columns=("order", f"area{unit}", "to the best", "p (Holm)", "descending - ascending", "p (Holm) of directions"),
        rows=tuple(rows),
    )


def point_sheet(results: Results, metric: str, verdict: PointVerdict | None) -> Sheet:
    """A row per point: its score, and the paired difference where there is one."""
    table, factor, digits = results.points, scale(results, metric), _digits(results, metric)
    compared = {found.name: found for found in verdict.found} if verdict else {}
    rows = []
    for _, row in table.iterrows():
        found = compared.get(str(row["name"]))
        value, error = row.get(metric, math.nan), row.get(f"{metric}{STDERR}", math.nan)
        score = Cell(None if math.isnan(value) else factor * value, None if math.isnan(error) else factor * error, digits)
        cells = (score, _of_test(found.test, factor, digits) if found else Cell(None), Cell(p_text(found.p) if found else None))
        rows.append((str(row["name"]), (*cells, Cell(str(row["state"])), Cell(str(row["key"])))))
    unit = " [%]" if factor == 100 else ""
    tests = f" Differences are {HOW}; p after Holm over {verdict.tests} tests." if verdict else ""
    n = table.attrs["n"].get(metric)
    return Sheet(
        name="points-" + metric.replace("/", "-"),
        title=f"Points by {metric}",
        caption=f"{n:,} documents; ± is the standard error over them.{tests} {gaps(table)}".strip() if n else gaps(table),
        columns=("point", f"{metric}{unit}", f"to {verdict.against}" if verdict else "difference", "p (Holm)", "state", "key"),
        rows=tuple(rows),
    )


def shown_metrics(results: Results, most: int = 4) -> list[str]:
    """The primary metric and one of every other task: bits per byte where there are several of a text."""
    names = metric_names(results.points)
    chosen: dict[str, str] = {}
    for name in names:
        task = name.split("/")[0]
        if task not in chosen or (name.endswith("bits_per_byte") and task != names[0].split("/")[0]):
            chosen[task] = name
    return list(chosen.values())[:most]


def p_text(p: float) -> str:
    """`0.032`, `< 0.001`."""
    return "-" if math.isnan(p) else f"< {LEAST_P}" if p < LEAST_P else f"{p:.2g}"


def _corrected(tests: Sequence[tuple[str, Test]]) -> list[Compared]:
    corrected = holm([found.p for _, found in tests])
    return [Compared(name, found, p) for (name, found), p in zip(tests, corrected, strict=True)]


def _of_test(found: Test, factor: float, digits: int) -> Cell:
    return Cell(factor * found.mean, None if found.stderr is None else factor * found.stderr, digits)


def _digits(results: Results, metric: str) -> int:
    return 1 if scale(results, metric) == 100 else 3
