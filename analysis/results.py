"""Studies as one table: a row per point, a column per choice and per metric; and the products that lie behind it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from analysis import lineage
from cpt_lab.names import unknown
from cpt_lab.specs import Evaluation, Ranking, Spec, Spectra, TopOf, closure, key, rankings_of
from cpt_lab.store import State, Status, Store, read_json
from cpt_lab.study import Point, Study, point_status, resolved

if TYPE_CHECKING:
    import pandas as pd

    from analysis.paired import Outcomes

STDERR = "__stderr"
PLURALS = {"head": "heads", "matrix": "matrices", "layer": "layers"}
UNFINISHED = (State.PLANNED, State.QUEUED, State.RUNNING, State.PREEMPTED)
Kind = TypeVar("Kind", bound=Spec)


@dataclass(frozen=True)
class Found(Generic[Kind]):
    """A finished point: its spec and the folder of its product."""

    point: Point
    spec: Kind
    product: Path


@dataclass(frozen=True)
class SpectraOf:
    """A finished table of spectra, read when it is asked for."""

    spec: Spectra
    product: Path

    def table(self) -> pd.DataFrame:
        """A row per head and matrix: layer, role, head, and the measures of the spec."""
        return _read(self.product / "table.parquet")

    def indices(self) -> pd.DataFrame:
        """A row per singular value; ValueError if the study did not ask for them."""
        if not self.spec.indices:
            raise ValueError(f"{key(self.spec)} has no row per singular value: add spectra.indices=true and run the study again")
        return _read(self.product / "indices.parquet")


class Results:
    """What every figure is built from: the points of one study or of several, and the products behind them."""

    def __init__(self, store: Store, studies: Sequence[Study]) -> None:
        if not studies:
            raise ValueError("results of no study: name at least one")
        self.store = store
        self.studies = tuple(studies)
        self._outcomes: dict[str, Outcomes] = {}

    @property
    def name(self) -> str:
        return "+".join(study.name for study in self.studies)

    @property
    def question(self) -> str:
        """What the first study asks that asks anything."""
        return next((study.question for study in self.studies if study.question), "")

    @cached_property
    def points(self) -> pd.DataFrame:
        """The `frame`s of all studies below each other, with a column `study` and those of `lineage`."""
        import pandas as pd

        frames = [frame(self.store, study) for study in self.studies]
        attrs: list[dict[str, Any]] = [{str(name): known for name, known in table.attrs.items()} for table in frames]
        for table, study in zip(frames, self.studies, strict=True):
            table.attrs = {}  # pandas would compare them
            table.insert(0, "study", study.name)
        whole = frames[0] if len(frames) == 1 else pd.concat([table.astype(object) for table in frames], ignore_index=True).infer_objects()
        whole.attrs.update(_joined(attrs, self))
        return whole

    @cached_property
    def resolved(self) -> dict[str, Spec]:
        """Key -> the spec of every point, as far as its ranking is known."""
        return {key(spec): spec for specs in self._specs for spec in specs.values()}

    @cached_property
    def _specs(self) -> list[dict[str, Spec]]:
        """Per study, by name of the point: the spec as far as its ranking is known."""
        return [resolved(self.store, study.points) for study in self.studies]

    def metric(self, name: str | None = None) -> str:
        """This metric, or without a name the primary one; ValueError if nothing is finished, KeyError for a metric that was not scored."""
        known = metric_names(self.points)
        if name and name not in known:
            raise KeyError(unknown("metric", name, known))
        return name or known[0]

    def outcomes(self, metric: str) -> Outcomes:
        """What every document of a metric's task gave at each point; read once for all who ask."""
        from analysis.paired import Outcomes

        return self._outcomes.setdefault(metric, Outcomes(self, metric))

    def documents(self, of: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The outcome of every document of a finished evaluation, by its key: task, document and a column per metric."""
        return _read(self.store.root / Evaluation.FOLDER / of / "product" / "samples.parquet", columns)

    def scored(self, of: str, task: str, column: str) -> tuple[NDArray[np.object_], NDArray[np.float64]] | None:
        """(documents, what each contributed to the metric) of one task of a finished evaluation; None without such a column."""
        import pyarrow.parquet as parquet

        file = parquet.ParquetFile(self.store.root / Evaluation.FOLDER / of / "product" / "samples.parquet")
        if column not in file.schema_arrow.names:
            return None
        read = file.read(columns=["task", "document", column], use_threads=False)
        mine = read.column("task").to_numpy() == task
        return read.column("document").to_numpy()[mine], read.column(column).to_numpy()[mine].astype(np.float64)

    def has(self, of: str) -> bool:
        """Whether the evaluation of this key is finished, as a point of these studies or of any other."""
        return (self.store.root / Evaluation.FOLDER / of / "DONE").exists()

    @cached_property
    def rankings(self) -> list[tuple[Ranking, Path]]:
        """The finished rankings that points are, or wait for, each once, with their products."""
        found = [each for study in self.studies for each in _rankings(self.store, study)]
        return list({key(ranking): (ranking, product) for ranking, product in found}.values())

    @cached_property
    def tables(self) -> list[SpectraOf]:
        """The finished tables of spectra that points are, or that their rankings read, each once."""
        asked = [point.spec for study in self.studies for point in study.points]
        rankings = [spec for spec in asked if isinstance(spec, Ranking)] + [ranking for spec in asked for ranking in rankings_of(spec)]
        wanted = [spec for spec in asked if isinstance(spec, Spectra)] + [table for ranking in rankings for table in ranking.spectra]
        once = {key(spec): spec for spec in wanted}.values()
        return [SpectraOf(spec, self.store.product(spec)) for spec in once if self.store.is_done(spec)]

    def of_kind(self, kind: type[Kind]) -> list[Found[Kind]]:
        """Every finished point whose spec is of this kind."""
        found = []
        for study, specs in zip(self.studies, self._specs, strict=True):
            for point in study.points:
                spec = specs[point.name]
                if isinstance(spec, kind) and self.store.is_done(spec):
                    found.append(Found(point, spec, self.store.product(spec)))
        return found

    def needed(self, kind: type[Kind]) -> list[tuple[Kind, Path]]:
        """Every finished spec of this kind that points are or need (training runs, corpora), each once, with its product."""
        wanted = closure([point.spec for study in self.studies for point in study.points])
        return [(spec, self.store.product(spec)) for spec in wanted if isinstance(spec, kind) and self.store.is_done(spec)]


def frame(store: Store, study: Study) -> pd.DataFrame:
    """One row per point: name, what varies, state, message, each metric's `<task>/<metric>` and `<task>/<metric>__stderr`, key.

    Rewound points always have the columns criterion, direction, fraction and seed, whether the study varies them or not, and every point
    those of `lineage`. `attrs` holds study, question, varies (the columns of the sweep), protocol, protocols (name by key), primary (the
    name of the main metric), units (the kinds that are rewound), and per metric n (documents), part (of the items, where not all were
    scored) and higher_is_better: small things only, for pandas copies them with every column.
    """
    import pandas as pd

    specs = resolved(store, study.points)
    found = {key(spec): _scored(store, spec) for spec in specs.values()}
    known: dict[tuple[str, str], str] = {}
    rows = [_row(point, specs[point.name], found, origin=lineage.columns(point.spec, known), store=store) for point in study.points]
    table = pd.DataFrame(rows)
    metrics = {name: metric for results in found.values() for name, metric in results.get("metrics", {}).items()}
    protocols = {key(point.spec.protocol): point.spec.protocol.name for point in study.points if isinstance(point.spec, Evaluation)}
    table.attrs = {
        "study": study.name,
        "question": study.question,
        "varies": list(dict.fromkeys(name for point in study.points for name in point.varies)),
        "protocol": next(iter(protocols.values()), ""),
        "protocols": protocols,
        "primary": next((results["primary"] for results in found.values() if results), ""),
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


def _row(point: Point, spec: Spec, found: Mapping[str, dict[str, Any]], *, origin: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """What was chosen, where the checkpoint comes from, and how it went."""
    choices = {"name": point.name, **_rewound(point.spec), **point.varies}
    where = {name: value for name, value in origin.items() if value is not None or name not in choices}
    results = found[key(spec)]
    status = Status(State.DONE) if results else point_status(store, spec)
    columns: dict[str, Any] = {**choices, **where, "state": status.state.value, "message": status.message}
    for name, metric in results.get("metrics", {}).items():
        columns[name] = _number(metric["value"])
        columns[f"{name}{STDERR}"] = _number(metric["stderr"])
    return {**columns, "key": key(spec)}


def _scored(store: Store, spec: Spec) -> dict[str, Any]:
    """The scores of a finished evaluation; ValueError if they are not written as this version writes them."""
    results = read_json(store.folder(spec) / "product" / "results.json") if isinstance(spec, Evaluation) and store.is_done(spec) else {}
    metrics = results.get("metrics", {})
    written = {"value", "stderr", "n", "higher_is_better"}
    if results and not ("primary" in results and isinstance(metrics, dict) and all(written <= set(metric) for metric in metrics.values())):
        raise ValueError(f"the results of {key(spec)} were written by another version of cpt_lab: use that one, or another results folder")
    return results


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


def _joined(attrs: Sequence[dict[str, Any]], results: Results) -> dict[str, Any]:
    """What several tables know, as one."""
    first, *others = attrs
    if not others:
        return first
    joined: dict[str, Any] = {"study": results.name, "question": results.question}
    for name in ("protocol", "primary"):
        joined[name] = next((each[name] for each in attrs if each[name]), "")
    for name in ("protocols", "n", "part", "higher_is_better"):
        joined[name] = {key: value for each in attrs for key, value in each[name].items()}
    for name in ("varies", "units"):
        joined[name] = list(dict.fromkeys(value for each in attrs for value in each[name]))
    return joined


def _read(file: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(file, columns=None if columns is None else list(columns))


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
