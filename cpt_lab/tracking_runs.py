"""What MLflow shall show of a study: the study's run, and below it a run per finished point, per curve of points and per training.

Read from the store alone, and only of what is asked for. Importing this needs no MLflow.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cpt_lab.specs import Evaluation, Patched, Ranking, Spec, TopOf, TrainedCheckpoint, closure, key, rankings_of, settled
from cpt_lab.store import State, Status, Store, read_json
from cpt_lab.study import Point, Study, Value, orders, scores
from cpt_lab.tracking_look import PARENT, RUN_STATUS, Look, point_identity, run_status, training_identity
from cpt_lab.tracking_records import PARAM_LENGTH, TAG_LENGTH, Measurement, Record, legal_name

AXES = {"fraction": 1000, "percent": 10}  # what curves are drawn over -> steps per unit: MLflow's steps are whole numbers
FILTERS = ("intervention", "criterion", "direction", "fraction", "seed")  # what people look for, as tags of these names
MOST_REASONS = 5
NOTE = """The metrics `points/...` step in seconds since the study began, `points/done` among them. Those of points and curves step in
thousandths of the fraction (or of 100 percent), so that runs of the kind `curve`, compared, draw the curves."""


@dataclass(frozen=True)
class Runs:
    """The runs of one study as one look found it."""

    store: Store
    study: Study
    look: Look

    @cached_property
    def identities(self) -> dict[str, Point]:
        """Identity -> point."""
        named = {point.name: point for point in self.study.points}
        return {point_identity(entry): named[entry.name] for entry in self.look.roster.entries if entry.name in named}

    @cached_property
    def curves(self) -> dict[str, list[str]]:
        """Identity of a curve -> identities of its points, of which there are two places or more."""
        found: dict[str, list[str]] = {}
        for identity, point in self.identities.items():
            if (axis := _axis(point)) is not None:
                found.setdefault(_curve_identity(point, axis), []).append(identity)
        places = {name: {step(self.identities[point]) for point in points} for name, points in found.items()}
        return {name: points for name, points in found.items() if len(places[name]) > 1}

    @cached_property
    def wanted(self) -> set[str]:
        """The identities of all runs that there are to be."""
        shown = self.look.stamps
        return {PARENT, *shown, *(name for name, points in self.curves.items() if not shown.keys().isdisjoint(points))}

    def everything(self) -> list[Record]:
        """The study's run first."""
        shown = self.records(self.look.stamps)
        return [self.parent(shown), *shown, *self.curve_records(shown)]

    def records(self, identities: Iterable[str]) -> list[Record]:
        """The runs of these points and training runs."""
        asked = list(identities)
        trained = {training_identity(folder): status for folder, status in self.look.trainings.items()}
        runs = [_training(self.store, self.study.name, self._trainings[name], trained[name]) for name in asked if name in self._trainings]
        points = [name for name in asked if name in self.identities]
        known = orders(self.store, [self.identities[name].spec for name in points])
        return [*runs, *(self._point(name, settled(self.identities[name].spec, known)) for name in points)]

    def curve_records(self, shown: Sequence[Record]) -> list[Record]:
        """The curves of these points, with the measurements of these alone."""
        by_identity = {record.identity: record for record in shown}
        curves = {name: [by_identity[point] for point in points if point in by_identity] for name, points in self.curves.items()}
        return [self._curve(name, points) for name, points in curves.items() if points]

    def parent(self, shown: Sequence[Record]) -> Record:
        """The study's run: the plan, how far it is, and the curves of the main metric as far as these points make them."""
        states = self.look.points
        counts = Counter(status.state for status in states.values())
        params, overlong = self._choices
        times = [status.since for status in states.values() if status.since]
        return Record(
            identity=PARENT,
            name=self.study.name,
            status=run_status([status.state for status in states.values()]),
            started=min(times, default=0.0),
            ended=self.look.changed,
            params=params,
            tags={
                **self._tags("study"),
                "cpt.question": self.study.question,
                "cpt.command": self.study.command[:TAG_LENGTH],
                "cpt.points": ", ".join(f"{count} {state.value}" for state, count in counts.most_common()),
                "mlflow.note.content": _note(self.study, counts, states)[:TAG_LENGTH],
            },
            metrics=tuple(sorted((*_main(self._curve_of, shown), *_progress(counts, self.look.changed)), key=_in_order)),
            texts=overlong,
        )

    def plan(self) -> str:
        """All points with what varies and the folder of each, as CSV: MLflow shows it as a table."""
        columns = list(dict.fromkeys(name for point in self.study.points for name in point.varies))
        folders = {entry.name: entry.folder for entry in self.look.roster.entries}
        file = io.StringIO()
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["point", *columns, "folder"])
        rows.writerows([point.name, *map(point.varies.get, columns), folders.get(point.name)] for point in self.study.points)
        return file.getvalue()

    @cached_property
    def _choices(self) -> tuple[dict[str, str], dict[str, str]]:
        """What the points choose, each choice once, as parameters."""
        return _params(_shared([{**point.varies, **_curated(point)} for point in self.study.points]))

    @cached_property
    def _trainings(self) -> dict[str, TrainedCheckpoint]:
        needs = closure([point.spec for point in self.study.points])
        return {f"training {key(spec)}": spec for spec in needs if isinstance(spec, TrainedCheckpoint)}

    @cached_property
    def _curve_of(self) -> dict[str, str]:
        """Identity of a point -> name of its curve."""
        return {point: name.removeprefix("curve ") for name, points in self.curves.items() for point in points}

    def _point(self, identity: str, spec: Spec) -> Record:
        point, status = self.identities[identity], self.look.points[self.identities[identity].name]
        results = scores(self.store, spec)
        params, overlong = _params({**point.varies, **_curated(point)})
        in_curve = identity in self._curve_of
        own = {"cpt.primary": str(results.get("primary", "")), **({"curve": self._curve_of[identity]} if in_curve else {})}
        return Record(
            identity=identity,
            name=point.name,
            status=RUN_STATUS[status.state],
            started=status.since - float(results.get("seconds") or 0.0),
            ended=status.since,
            params=params,
            tags={**self._tags("point", point), **_made(self.store, spec, status), **own},
            metrics=tuple(_measurements(results, step(point), status.since)),
            texts={"config.json": json.dumps(point.config, indent=1, default=str), "spec.json": spec.model_dump_json(indent=1), **overlong},
            files=_existing({**_product(self.store, spec), **({} if in_curve else _rankings(self.store, point))}),
        )

    def _curve(self, identity: str, points: Sequence[Record]) -> Record:
        members = [self.identities[name] for name in self.curves[identity]]
        states = [self.look.points[point.name].state for point in members]
        ended = all(state in RUN_STATUS for state in states)
        first, axis = members[0], _axis(members[0])
        params, _ = _params({name: value for name, value in {**first.varies, **_curated(first)}.items() if name != axis})
        tags = {name: value for name, value in self._tags("curve", first).items() if name != axis}
        metrics = (item for record in points for item in record.metrics if not item.name.endswith("__stderr"))
        return Record(
            identity=identity,
            name=identity.removeprefix("curve "),
            status=run_status(states) if ended else "SCHEDULED",
            started=min(record.started for record in points),
            ended=max(record.ended for record in points),
            params=params,
            tags=tags,
            metrics=tuple(sorted(metrics, key=_in_order)),
            files=_existing(_rankings(self.store, first)),
        )

    def _tags(self, kind: str, point: Point | None = None) -> dict[str, str]:
        """What runs are filtered by; `cpt.current` is taken from runs that the study no longer has."""
        return {"study": self.study.name, "kind": kind, "cpt.current": "true", **(_choices(point) if point else {})}


def step(point: Point) -> int:
    """Where a point stands on its curve, in thousandths of the whole; 0 for one of no curve."""
    axis = _axis(point)
    return 0 if axis is None else round(AXES[axis] * float(point.varies[axis] or 0))


# ------------------------------------------------------------------------------------------------------------- the parent


def _note(study: Study, counts: Counter[State], states: dict[str, Status]) -> str:
    """The live summary, in Markdown."""
    table = "\n".join(f"| {state.value} | {count} |" for state, count in counts.most_common())
    reasons = Counter(
        f"{status.state.value}: {status.message}" for status in states.values() if status.message and status.state in RUN_STATUS
    )
    failed = "\n".join(f"- {reason} ({count} points)" for reason, count in reasons.most_common(MOST_REASONS))
    parts = (study.question, f"| state | points |\n|---|---|\n{table}", failed, f"`{study.command}`" if study.command else "", NOTE)
    return "\n\n".join(part for part in parts if part)


def _progress(counts: Counter[State], changed: float) -> Iterator[Measurement]:
    """Points done, ended without a result, and to do."""
    done = counts[State.DONE]
    failed = sum(count for state, count in counts.items() if state in RUN_STATUS and state is not State.DONE)
    for name, count in (("done", done), ("failed", failed), ("to do", counts.total() - done - failed)):
        yield Measurement(f"points/{name}", float(count), None, changed)


def _main(curves: dict[str, str], shown: Sequence[Record]) -> Iterator[Measurement]:
    """Every curve of the main metric, under a name that curves of other studies share."""
    for record in shown:
        main = record.tags.get("cpt.primary", "")
        for item in record.metrics if record.identity in curves else ():
            if item.name == main:
                yield replace(item, name=legal_name(f"{main}/{curves[record.identity]}"))


def _in_order(item: Measurement) -> tuple[str, int, float]:
    return item.name, item.step or 0, item.time


def _shared(choices: Sequence[Mapping[str, Value]]) -> dict[str, str]:
    """Each choice once, in the order of the points."""
    found: dict[str, dict[str, None]] = {}
    for chosen in choices:
        for name, value in chosen.items():
            if value is not None:
                found.setdefault(name, {})[str(value)] = None
    return {name: ", ".join(values) for name, values in found.items()}


# ----------------------------------------------------------------------------------------------------------- the children


def _training(store: Store, study: str, spec: TrainedCheckpoint, status: Status) -> Record:
    recipe = spec.recipe.model_dump(include={"lr", "schedule", "sequence_length", "batch_sequences", "seed", "precision"})
    params, overlong = _params({"model": spec.shape.name, "mixture": spec.mixture.name, "tokens": spec.mixture.tokens, **recipe})
    product = store.product(spec) if status.state is State.DONE else None
    facts = {} if product is None else read_json(product / "training.json")
    return Record(
        identity=f"training {key(spec)}",
        name=spec.label(),
        status=RUN_STATUS[status.state],
        started=status.since - float(facts.get("seconds") or 0.0),
        ended=status.since,
        params=params,
        tags={"study": study, "kind": "training", "cpt.current": "true", **_made(store, spec, status)},
        texts={"spec.json": spec.model_dump_json(indent=1), **overlong},
        files=_existing({"training.json": product / "training.json"}) if product else {},
        series=product / "metrics.jsonl" if product and (product / "metrics.jsonl").exists() else None,
    )


def _axis(point: Point) -> str | None:
    """What the point's curve is drawn over."""
    return next((name for name in AXES if isinstance(point.varies.get(name), int | float)), None)


def _curve_identity(point: Point, axis: str) -> str:
    """`curve scaled_norm_diff ascending`: all that varies but the place on the curve."""
    others = {name: value for name, value in point.varies.items() if name != axis and value is not None}
    words = [str(value) if isinstance(value, str) else f"{name} {value:g}" for name, value in others.items()]
    return f"curve {' '.join(words) or axis}"


def _choices(point: Point) -> dict[str, str]:
    """The tags of FILTERS, whether the study varies them or not."""
    changes = _changes(point.spec)
    selects = [change.select for change in changes if isinstance(getattr(change, "select", None), TopOf)]
    found: dict[str, Any] = {"intervention": "+".join(change.kind for change in changes) or "none"}
    if len(selects) == 1:
        order = selects[0].ranking
        found |= {"criterion": order.criterion, "direction": order.direction, "fraction": selects[0].fraction, "seed": order.seed}
    elif isinstance(point.spec, Ranking):
        found |= {"criterion": point.spec.criterion, "direction": point.spec.direction, "seed": point.spec.seed}
    found |= {name: value for name, value in point.varies.items() if name in FILTERS}
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in found.items() if value is not None}


def _curated(point: Point) -> dict[str, str]:
    """The few choices that people look for first: model, intervention, protocol, sample sizes."""
    spec = point.spec
    if not isinstance(spec, Evaluation):
        return {"kind": spec.FOLDER}
    items = [task.count for task in spec.protocol.tasks]
    return {
        "model": spec.loaded.shape.name,
        "tuned": spec.loaded.label(),
        "intervention": "+".join(change.kind for change in _changes(spec)) or "none",
        "protocol": spec.protocol.label(),
        "items": "/".join("all" if count is None else str(count) for count in items),
    }


def _changes(spec: Spec) -> tuple[Any, ...]:
    checkpoint = getattr(spec, "checkpoint", spec)
    return checkpoint.interventions if isinstance(checkpoint, Patched) else ()


def _params(values: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """(parameters, artifacts for those that MLflow would cut)."""
    named = {legal_name(name): str(value) for name, value in values.items() if value is not None}
    overlong = {name: value for name, value in named.items() if len(value) > PARAM_LENGTH}
    short = {name: value if name not in overlong else f"see the artifact params/{name}.txt" for name, value in named.items()}
    return short, {f"params/{name}.txt": value for name, value in overlong.items()}


def _made(store: Store, spec: Spec, status: Status) -> dict[str, str]:
    """What says how a result was made. `cpt.message` is there even if empty: a success must erase the failure before it."""
    provenance = store.provenance(spec)
    leaves = dict(_leaves(provenance))
    tags = {
        "cpt.key": key(spec),
        "cpt.state": status.state.value,
        "cpt.message": status.message[:TAG_LENGTH],
        **{f"cpt.made.{name}": value for name, value in leaves.items() if len(value) <= TAG_LENGTH},
    }
    return {**tags, "mlflow.source.git.commit": leaves["git"]} if "git" in leaves else tags


def _leaves(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float) and value != "":
            yield f"{prefix}{name}", str(value)


def _measurements(results: dict[str, Any], at: int, time: float) -> Iterator[Measurement]:
    for name, metric in results.get("metrics", {}).items():
        for suffix, value in (("", metric.get("value")), ("__stderr", metric.get("stderr"))):
            if value is not None and not math.isnan(value):
                yield Measurement(legal_name(f"{name}{suffix}"), float(value), at, time)


def _product(store: Store, spec: Spec) -> dict[str, Path]:
    if not store.is_done(spec):
        return {}
    return {name: store.product(spec) / name for name in ("results.json", "patch.json")}


def _rankings(store: Store, point: Point) -> dict[str, Path]:
    """The finished rankings that a point was made with."""
    done = [store.product(ranking) for ranking in rankings_of(point.spec) if store.is_done(ranking)]
    return {name: product / name for product in done for name in ("ranking.json", "scores.parquet")}


def _existing(files: dict[str, Path]) -> dict[str, Path]:
    return {name: path for name, path in files.items() if path.is_file()}
