"""Orders of rewinding against each other: areas under their curves, document by document, with paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis import curves
from analysis.curves import ENDS, also_varies
from analysis.paired import Outcomes, Test, one_sample
from analysis.results import Results, is_share
from cpt_lab.evaluation.statistics import mean, standard_error

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Order:
    """One criterion in one direction: the area under its curve for every document, the mean of its seeds if it has several."""

    criterion: str
    direction: str
    also: str  # what else the sweep varies
    fractions: tuple[float, ...]
    keys: tuple[tuple[str, ...], ...]  # of the evaluations, seeds x fractions
    areas: pd.Series[float]  # by document, in units of the metric x share of units
    by_seed: tuple[float, ...]

    @property
    def family(self) -> str:
        return curves.family(self.criterion, self.also)

    @property
    def label(self) -> str:
        return curves.label(self.criterion, self.direction, self.also, seeds=len(self.keys))

    @property
    def area(self) -> float:
        return float(self.areas.mean())


def orders(results: Results, metric: str) -> list[Order]:
    """The orders whose curves have no gap, each with per-document areas; best first. Empty where the metric is not per document."""
    table = results.points
    outcomes = results.outcomes(metric)
    done = table[table["fraction"].notna() & table["criterion"].notna() & table[metric].notna()] if metric in table else table.iloc[:0]
    found = list(_orders(done, results.points, outcomes))
    better = bool(table.attrs["higher_is_better"].get(metric, True))
    return sorted(found, key=lambda order: -order.area if better else order.area)


def difference(ours: Order, theirs: Order) -> Test:
    """The area under ours minus that under theirs, paired over documents."""
    found = differences(ours, theirs)
    return Test(mean(found), standard_error(found), len(found), one_sample(found))


def differences(ours: Order, theirs: Order) -> NDArray[np.float64]:
    """The area under ours minus that under theirs, of every document that both have; ValueError if they share none."""
    shared = ours.areas.index.intersection(theirs.areas.index)
    if shared.empty:
        raise ValueError(f"the orders {ours.label} and {theirs.label} share no document: there is nothing to pair")
    return np.asarray(ours.areas.loc[shared] - theirs.areas.loc[shared], float)


def carried(changes: Mapping[float, Test | None], *, sign: int, errors: float) -> float | None:
    """The largest share before the first one that loses more than so many standard errors; None if the first one does."""
    largest = None
    for share, change in sorted(changes.items()):
        if change is None or sign * change.mean < -errors * (change.stderr or 0.0):
            break
        largest = share
    return largest


def directions(found: Sequence[Order]) -> dict[str, Test]:
    """Family -> descending minus ascending (P eq. 18 before the bars), where both are there."""
    return {family: difference(*both) for family, both in pairs(found).items()}


def pairs(found: Sequence[Order]) -> dict[str, tuple[Order, Order]]:
    """Family -> (descending, ascending), where both are there."""
    by_place = {(order.family, order.direction): order for order in found}
    families = dict.fromkeys(order.family for order in found)
    return {
        family: (by_place[family, "descending"], by_place[family, "ascending"])
        for family in families
        if (family, "descending") in by_place and (family, "ascending") in by_place
    }


def scale(results: Results, metric: str) -> float:
    """100 for shares, which people read in percent; else 1."""
    return 100.0 if is_share(results.points, metric) else 1.0


def _orders(done: pd.DataFrame, table: pd.DataFrame, outcomes: Outcomes) -> Iterator[Order]:
    wanted = table[table["fraction"].notna() & table["criterion"].notna()]
    others = also_varies(wanted, table.attrs["varies"])
    for names, rows in done.groupby(["criterion", "direction", *others], sort=False, dropna=False):
        # Points that differ in criterion and direction alone: at the ends their weights are the same.
        alike, asked = curves.rows_like(done, rows, others), curves.rows_like(wanted, rows, ["criterion", "direction", *others])
        ends = {end: str(at["key"].iloc[0]) for end in ENDS if len(at := alike[alike["fraction"] == end])}
        fractions = sorted({float(fraction) for fraction in asked["fraction"]} | set(ends))
        seeds = [dict(zip(group["fraction"].astype(float), group["key"], strict=True)) for group in _seeds(rows)]
        keys = [tuple(seed.get(fraction, ends.get(fraction, "")) for fraction in fractions) for seed in seeds]
        whole = [row for row in keys if all(row)]
        areas = [found for row in whole if (found := _areas(fractions, row, outcomes)) is not None]
        if len(fractions) > 1 and areas and len(areas) == len(keys):
            also = ", ".join(f"{name}={value}" for name, value in zip(others, names[2:], strict=True))
            yield _order(names, also, fractions, keys=whole, areas=areas)


def _order(
    names: tuple[Any, ...], also: str, fractions: list[float], *, keys: list[tuple[str, ...]], areas: list[pd.Series[float]]
) -> Order:
    import pandas as pd

    together = pd.concat(areas, axis=1, join="inner").mean(axis=1)
    by_seed = tuple(float(each.mean()) for each in areas)
    return Order(str(names[0]), str(names[1]), also, tuple(fractions), tuple(keys), together, by_seed)


def _areas(fractions: list[float], keys: tuple[str, ...], outcomes: Outcomes) -> pd.Series[float] | None:
    """The trapezoid of every document's outcomes over the fractions (P eq. 17)."""
    import pandas as pd

    columns = [outcomes.of(key) for key in keys]
    if any(column is None for column in columns):
        return None
    together = pd.concat(columns, axis=1, join="inner")
    if together.empty:
        return None
    return pd.Series(np.trapezoid(together.to_numpy(float), fractions, axis=1), index=together.index)


def _seeds(rows: pd.DataFrame) -> list[pd.DataFrame]:
    repeats = [name for name in rows.columns if name == "seed" or name.endswith(".seed")]
    return [group for _, group in rows.groupby(repeats, sort=True, dropna=False)]
