"""A study: named points and what varies between them, kept in the store beside the results it refers to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from cpt_lab.failures import first_line
from cpt_lab.names import nearest
from cpt_lab.specs import (
    AnySpec,
    Evaluation,
    Parts,
    Ranking,
    Spec,
    Unit,
    closure,
    from_parts,
    key,
    rankings_of,
    read_parts,
    settled,
)
from cpt_lab.store import State, Status, Store, read_json, write_atomically
from cpt_lab.tracking_settings import Tracking

Value = str | int | float | bool | None


OF_ALL_POINTS = ("config", "parts")  # of a manifest


class Point(BaseModel):
    """One fully resolved configuration of a study."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str  # unique in its study, for people: "fraction=0.125 scaled_norm_diff ascending"
    varies: dict[str, Value]  # what the sweep changed, by short column name
    config: dict[str, Any]  # the whole composed configuration
    spec: AnySpec


class Study(BaseModel):
    """All points that one command asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    question: str = ""
    command: str = ""
    points: tuple[Point, ...]
    figures: tuple[str, ...] = ()
    report: bool = True  # whether its end writes one
    tracking: Tracking = Tracking()

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ValueError(f"study name {name!r}: use letters, digits, '_', '-' and '.'")
        return name


def folder(store: Store, name: str) -> Path:
    """Where the study's manifest, figures and table lie."""
    return store.root / "studies" / name


def save(store: Store, study: Study) -> os.stat_result:
    """Write the manifest: a study is what its newest command asked for; results of earlier points stay in the store."""
    path = folder(store, study.name) / "study.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, json.dumps(_manifest(study), separators=(",", ":")))


def load(store: Store, name: str) -> Study:
    """The study of this name; KeyError with the known names if there is none."""
    path = folder(store, name) / "study.json"
    if not path.exists():
        raise KeyError(no_such(store, name))
    try:
        return read(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was written by another version of cpt_lab ({first_line(error)}): launch the study again") from None


def read(manifest: dict[str, Any]) -> Study:
    """The study of a manifest, its points sharing their equal parts; ValueError if it is of another version."""
    parts, common = read_parts(manifest["parts"]), manifest["config"]
    points = [{**point, "config": common | point["config"], "spec": from_parts(point["spec"], parts)} for point in manifest["points"]]
    return Study.model_validate({name: value for name, value in manifest.items() if name not in OF_ALL_POINTS} | {"points": points})


def asked_for(manifest: dict[str, Any], places: Iterable[int]) -> dict[int, Spec]:
    """The specs of some points of a manifest, by their places."""
    parts = read_parts(manifest["parts"])
    return {place: from_parts(manifest["points"][place]["spec"], parts) for place in places}


def _manifest(study: Study) -> dict[str, Any]:
    """The study as JSON values; what its points have in common of their specs and configurations stands there once."""
    parts = Parts()
    common = _common([point.config for point in study.points])
    points = [
        {
            "name": point.name,
            "varies": point.varies,
            "config": {name: value for name, value in point.config.items() if name not in common},
            "spec": parts.write(point.spec),
        }
        for point in study.points
    ]
    return {**study.model_dump(mode="json", exclude={"points"}), "config": common, "parts": parts.written, "points": points}


def _common(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that are the same everywhere."""
    common = dict(configs[0]) if configs else {}
    texts = {name: json.dumps(value) for name, value in common.items()}  # written alike is the same: True is not 1
    for config in configs[1:]:
        for name in list(common):
            same = name in config and (config[name] is common[name] or json.dumps(config[name]) == texts[name])
            if not same:
                del common[name]
    return common


def no_such(store: Store, name: str) -> str:
    """What to say of a study that is not there: the nearest names and the list."""
    known = names(store)
    return f"no study {name!r} in {store.root}{nearest(name, known)}; there are: {', '.join(known) or 'none yet'}"


def names(store: Store) -> list[str]:
    return sorted(path.parent.name for path in (store.root / "studies").glob("*/study.json"))


def orders(store: Store, wanted: Iterable[Spec]) -> dict[str, tuple[Unit, ...]]:
    """The finished rankings that these specs wait for: key -> units, first to rewind first."""
    rankings = {key(ranking): ranking for spec in wanted for ranking in rankings_of(spec)}
    return {name: order for name, ranking in rankings.items() if (order := read_order(store, ranking)) is not None}


def read_order(store: Store, ranking: Ranking) -> tuple[Unit, ...] | None:
    """The order of a finished ranking, or None."""
    if not store.is_done(ranking):
        return None
    ranked = read_json(store.product(ranking) / "ranking.json")
    return tuple((int(layer), part) for layer, part in ranked["order"])


def rankings_pending(spec: Spec) -> bool:
    """Whether this spec's units are still to come from a ranking."""
    return next(rankings_of(spec), None) is not None


def resolved(store: Store, points: tuple[Point, ...] | list[Point]) -> dict[str, Spec]:
    """Point name -> the spec whose result is the point's, as far as its ranking is known."""
    known = orders(store, [point.spec for point in points])
    return {point.name: settled(point.spec, known) for point in points}


def point_status(store: Store, spec: Spec) -> Status:
    """The status of a point, settled as far as its ranking is known; BLOCKED if the ranking, or what it needs, failed."""
    for ranking in rankings_of(spec):
        for need in reversed(closure([ranking])):
            known = store.status(need)
            if known.state in (State.FAILED, State.BLOCKED):
                return Status(State.BLOCKED, f"{key(need)} {known.state.value}: {known.message}")
    return store.status(spec)


def warnings(store: Store, spec: Spec) -> list[str]:
    """What a finished step warns of: of the checkpoints that it combines, and of what it scored."""
    if not store.is_done(spec):
        return []
    return [*store.provenance(spec).get("warnings", ()), *scores(store, spec).get("warnings", ())]


def scores(store: Store, spec: Spec) -> dict[str, Any]:
    """The finished scores of an evaluation (`results.json`), or nothing."""
    if not isinstance(spec, Evaluation) or not store.is_done(spec):
        return {}
    return read_json(store.product(spec) / "results.json")
