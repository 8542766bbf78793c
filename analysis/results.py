"""A study as one table: a row per point, a column per choice and per metric. Needs neither torch nor MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.specs import Evaluation, Ranking, Spec, TopOf, key, rankings_of
from cpt_lab.store import State, Store
from cpt_lab.study import Point, Study, point_status, resolved, scores

if TYPE_CHECKING:
    import pandas as pd

STDERR = "__stderr"
PLURALS = {"head": "heads", "matrix": "matrices", "layer": "layers"}
UNFINISHED = (State.PLANNED, State.QUEUED, State.RUNNING, State.PREEMPTED)


def frame(store: Store, study: Study) -> pd.DataFrame:
    """One row per point: name, what varies, state, message, each metric's `<task>/<metric>` and `<task>/<metric>__stderr`, key.

    Rewound points always have the columns criterion, direction, fraction and seed, whether the study varies them or not. `attrs` holds
    study, question, varies (the columns of the sweep), protocol, primary (the name of the main metric), rankings (with their products, as
    far as they are finished), units (the kinds that are rewound), and per metric n (documents), part (of the items, where not all were
    scored) and higher_is_better.
    """
    import pandas as pd

    specs = resolved(store, study.points)
    found = {point.name: scores(store, specs[point.name]) for point in study.points}
    rows = [{**_choices(point), **_outcome(store, specs[point.name], found[point.name])} for point in study.points]
    table = pd.DataFrame(rows)
    metrics = {name: metric for results in found.values() for name, metric in results.get("metrics", {}).items()}
    table.attrs = {
        "study": study.name,
        "question": study.question,
        "varies": list(dict.fromkeys(name for point in study.points for name in point.varies)),
        "protocol": next((point.spec.protocol.name for point in study.points if isinstance(point.spec, Evaluation)), ""),
        "primary": next((results["primary"] for results in found.values() if results), ""),
        "rankings": _rankings(store, study),
        "units": sorted({select.ranking.unit for point in study.points for select in _selects(point.spec)}),
        "n": {name: metric["n"] for name, metric in metrics.items()},
        "part": {name: metric["part"] for name, metric in metrics.items() if "part" in metric},
        "higher_is_better": {name: metric["higher_is_better"] for name, metric in metrics.items()},
    }
    return table


def metric_names(table: pd.DataFrame) -> list[str]:
    """The metrics of a `frame`, the primary one first; ValueError if no point has any."""
    primary = table.attrs.get("primary", "")
    if not primary:
        raise ValueError("no point of this study is finished: there is nothing to show yet")
    return [primary, *(name for name in table.attrs["n"] if name != primary)]


def is_share(table: pd.DataFrame, metric: str) -> bool:
    """Whether the metric is a share of documents (accuracy, F1, pass@1), which people read in percent."""
    values = table[metric].dropna()
    return bool(table.attrs["higher_is_better"].get(metric)) and bool(values.between(0, 1).all())


def rewound_units(table: pd.DataFrame) -> str:
    """What the fractions of a `frame` are fractions of, in the plural."""
    kinds = table.attrs["units"]
    return PLURALS[kinds[0]] if len(kinds) == 1 else "units"


def gaps(table: pd.DataFrame) -> str:
    """How many points are missing and why, in words; empty if all are done."""
    states = [State(state) for state in table["state"]]
    pending = sum(state in UNFINISHED for state in states)
    failed = sum(state is not State.DONE for state in states) - pending
    counts = ((failed, "failed"), (pending, "not finished"))
    return ", ".join(f"{count} of {len(states)} points {word}" for count, word in counts if count)


def _rankings(store: Store, study: Study) -> list[tuple[Ranking, Path]]:
    """The finished rankings that points are, or wait for, each once."""
    asked = [point.spec for point in study.points]
    found = [spec for spec in asked if isinstance(spec, Ranking)] + [ranking for spec in asked for ranking in rankings_of(spec)]
    return [(ranking, store.product(ranking)) for ranking in {key(each): each for each in found}.values() if store.is_done(ranking)]


def _choices(point: Point) -> dict[str, Any]:
    return {"name": point.name, **_rewound(point.spec), **point.varies}


def _rewound(spec: Spec) -> dict[str, Any]:
    """The choices of a rewind, which a study of one criterion does not name among what varies."""
    selects = _selects(spec)
    if len(selects) != 1:
        return {"criterion": None, "direction": None, "fraction": None, "seed": None}
    order = selects[0].ranking
    return {"criterion": order.criterion, "direction": order.direction, "fraction": selects[0].fraction, "seed": order.seed}


def _selects(spec: Spec) -> list[TopOf]:
    """The shares of rankings that a point rewinds."""
    changes = getattr(getattr(spec, "checkpoint", None), "interventions", ())
    return [change.select for change in changes if isinstance(getattr(change, "select", None), TopOf)]


def _outcome(store: Store, spec: Spec, results: dict[str, Any]) -> dict[str, Any]:
    status = point_status(store, spec)
    columns: dict[str, Any] = {"state": status.state.value, "message": status.message}
    for name, metric in results.get("metrics", {}).items():
        columns[name] = _number(metric["value"])
        columns[f"{name}{STDERR}"] = _number(metric["stderr"])
    return {**columns, "key": key(spec)}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
