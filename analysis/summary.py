"""A rewind study in the terminal: quality at each fraction, the area under each curve, and what the direction is worth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.curves import Curve, curves, finite_mean
from analysis.metrics import scale
from analysis.results import STDERR, gaps, is_share, metric_names, rewound_units

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

MISSING = "-"
FEW_POINTS = 4  # so many are shown with all their metrics


def table(results: pd.DataFrame, metric: str | None = None) -> Table:
    """One line per criterion and direction of a `results.frame`: the metric at each fraction, AUC and AUC-diff.

    AUC is the trapezoid over the fraction rewound (P eq. 17) and ΔAUC = |AUC descending - AUC ascending| (P eq. 18), both in points of
    the metric (percent, where it is a share) times fraction. Random orders: the mean, and a line of standard deviations over the seeds.
    A study that rewinds nothing has a line per point and metric instead. ValueError if nothing is finished.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metric = metric or metric_names(results)[0]
    if results[["criterion", "fraction"]].isna().any(axis=1).all():
        return _points(results)
    drawn, factor = curves(results, metric), scale(results, metric)
    fractions = sorted({fraction for curve in drawn for fraction in curve.fractions})
    unit, digits = (" [%]", 1) if is_share(results, metric) else ("", 3)
    title = f"{metric}{unit} against the {rewound_units(results)} rewound [%]"
    sheet = Table(title=title, caption=gaps(results) or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    sheet.add_column("order", no_wrap=True)
    for heading in [*(f"{100 * fraction:.4g}" for fraction in fractions), "AUC", "ΔAUC"]:
        sheet.add_column(heading, justify="right", no_wrap=True)
    differences, nothing = _differences(drawn), np.array([np.nan])
    for curve in drawn:
        columns = dict(zip(curve.fractions, curve.values.T, strict=True))
        values = [factor * columns.get(fraction, nothing) for fraction in fractions] + [factor * curve.areas()]
        difference = _number(factor * differences[curve.family], digits)
        sheet.add_row(_short(curve.label), *(_number(finite_mean(of_seeds), digits) for of_seeds in values), difference)
        if len(curve.values) > 1:
            sheet.add_row("  ± std", *(_spread(of_seeds, digits) for of_seeds in values), "")
    return sheet


def text(results: pd.DataFrame, metric: str | None = None, *, width: int = 160) -> str:
    """The `table` as plain text."""
    from rich.console import Console

    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(table(results, metric))
    return captured.get()


def _points(results: pd.DataFrame) -> Table:
    """A line per point and metric; of many points only the main metric."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    metrics = metric_names(results)[: None if len(results) <= FEW_POINTS else 1]
    sheet = Table(caption=gaps(results) or None, box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("point", "state", "metric", "value"):
        sheet.add_column(heading)
    for _, row in results.iterrows():
        for metric in metrics:
            error = row[f"{metric}{STDERR}"]
            value = _number(row[metric], 4) + ("" if math.isnan(error) else f" ± {error:.4f}")
            sheet.add_row(str(row["name"]), str(row["state"]), metric, value)
    return sheet


def _differences(drawn: list[Curve]) -> dict[str, float]:
    """Criterion -> |AUC descending - AUC ascending|, of the means over seeds; NaN where a direction is missing or has a gap."""
    areas = {(curve.family, curve.direction): float(np.mean(curve.areas())) for curve in drawn}
    nothing = float("nan")
    return {
        name: abs(areas.get((name, "descending"), nothing) - areas.get((name, "ascending"), nothing))
        for name in dict.fromkeys(curve.family for curve in drawn)
    }


def _short(label: str) -> str:
    """The name of a curve, so that the table fits 80 columns."""
    return label.replace("ascending", "asc.").replace("descending", "desc.")


def _spread(values: NDArray[np.float64], digits: int) -> str:
    """The standard deviation over seeds; nothing where they share one result."""
    done = values[np.isfinite(values)]
    return f"{done.std(ddof=1):.{digits}f}" if len(set(done)) > 1 else ""


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"
