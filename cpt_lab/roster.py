"""A study's roster: the folder of each point and need, kept beside the manifest so that looking at a study reads no spec.

`<results>/studies/<name>/roster.json` is a cache: whoever finds it out of date, or not there, makes it anew from `study.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from cpt_lab import plan, study
from cpt_lab.specs import SCHEMA, Evaluation, Spec, TrainedCheckpoint, closure, digest, key, rankings_of, settled
from cpt_lab.store import State, Status, Store, read_json, write_atomically
from cpt_lab.study import Study
from cpt_lab.tracking_settings import Tracking

FORMAT = 3  # raise when what is kept changes
DIGITS = 16  # of a digest, as in a key


class Entry(NamedTuple):
    """A point: where its result is or will be, and the rankings without an order that it still waits for."""

    name: str
    folder: str  # below the results: kind/key
    waits: tuple[str, ...]
    asked: str  # digest of the spec that was asked for, which stays when a ranking becomes known


@dataclass(frozen=True)
class Roster:
    """All that a look at a study must know of its specs: folders, relative to the results."""

    study: str
    entries: tuple[Entry, ...]
    needs: tuple[str, ...]  # what points need and are, but for evaluations; needs before what needs them
    probes: tuple[str, ...]  # the evaluations that rankings wait for
    chains: dict[str, tuple[str, ...]]  # a ranking that points wait for -> what it needs and itself, the ranking first
    trainings: tuple[str, ...]  # those of the needs that are training runs
    tracking: Tracking

    @property
    def folders(self) -> set[str]:
        """Everything the study refers to."""
        rankings = (name for chain in self.chains.values() for name in chain)
        return {*(entry.folder for entry in self.entries), *self.needs, *self.probes, *rankings}


def read(store: Store, name: str) -> Roster:
    """The roster of a study as of now; KeyError with the nearest names if there is no such study."""
    manifest = study.folder(store, name) / "study.json"
    if not manifest.exists():
        raise KeyError(study.no_such(store, name))
    found = manifest.stat()  # before it is read: another launch may write another manifest meanwhile
    stamp, kept = _stamp(found), read_json(manifest.with_name("roster.json"))
    if kept.get("stamp") != stamp:
        return write(store, study.load(store, name), found)
    roster = _parsed(kept)
    news = [ranking for ranking in roster.chains if (store.root / ranking / "DONE").exists()]
    return _refreshed(store, roster, set(news), manifest, stamp) if news else roster


def write(store: Store, asked: Study, manifest: os.stat_result, resolved: Mapping[str, Spec] | None = None) -> Roster:
    """The roster of a study, kept beside the manifest that was written of it if the results can be written; `resolved` as for `of`."""
    roster = of(store, asked, resolved)
    _keep(roster, study.folder(store, asked.name) / "study.json", _stamp(manifest))
    return roster


def of(store: Store, asked: Study, resolved: Mapping[str, Spec] | None = None) -> Roster:
    """The roster of a study, saved or not; `study.resolved` of its points takes long, and may be known."""
    wanted = [*(resolved or study.resolved(store, asked.points)).values()]
    entries = tuple(_entry(point.name, spec, digest(point.spec)[:DIGITS]) for point, spec in zip(asked.points, wanted, strict=True))
    needs = closure([*(point.spec for point in asked.points), *wanted])
    waiting = {_folder(ranking): ranking for spec in wanted for ranking in rankings_of(spec)}
    return Roster(
        study=asked.name,
        entries=entries,
        needs=tuple(_folder(spec) for spec in needs if spec.FOLDER and not isinstance(spec, Evaluation)),
        probes=tuple(_folder(spec) for spec in plan.probes(needs)),
        chains={name: tuple(_folder(need) for need in reversed(closure([ranking]))) for name, ranking in waiting.items()},
        trainings=tuple(_folder(spec) for spec in needs if isinstance(spec, TrainedCheckpoint)),
        tracking=asked.tracking,
    )


def states(store: Store, roster: Roster) -> dict[str, Status]:
    """Point -> status; BLOCKED if a ranking that it waits for, or what that needs, failed."""
    known: dict[str, Status] = {}

    def of(folder: str) -> Status:
        if folder not in known:
            known[folder] = store.status_in(store.root / folder)
        return known[folder]

    blocked = {name: found for name, chain in roster.chains.items() if (found := _blocked(chain, of)) is not None}
    return {
        entry.name: next((blocked[ranking] for ranking in entry.waits if ranking in blocked), None) or of(entry.folder)
        for entry in roster.entries
    }


def _blocked(chain: Iterable[str], status: Callable[[str], Status]) -> Status | None:
    for folder in chain:
        known = status(folder)
        if known.state in (State.FAILED, State.BLOCKED):
            return Status(State.BLOCKED, f"{Path(folder).name} {known.state.value}: {known.message}")
    return None


def _refreshed(store: Store, roster: Roster, news: set[str], manifest: Path, stamp: list[int]) -> Roster:
    """The roster after some rankings were finished: only the points that waited for them are read again."""
    waited = [index for index, entry in enumerate(roster.entries) if news.intersection(entry.waits)]
    late = study.asked_for(json.loads(manifest.read_text()), waited)
    orders = study.orders(store, late.values())
    entries = list(roster.entries)
    for index, spec in late.items():
        entries[index] = _entry(entries[index].name, settled(spec, orders), entries[index].asked)
    still = {name for entry in entries for name in entry.waits}
    chains = {name: chain for name, chain in roster.chains.items() if name in still}
    fresh = replace(roster, entries=tuple(entries), chains=chains)
    _keep(fresh, manifest, stamp)
    return fresh


def _entry(name: str, spec: Spec, asked: str) -> Entry:
    return Entry(name, _folder(spec), tuple(dict.fromkeys(_folder(ranking) for ranking in rankings_of(spec))), asked)


def _folder(spec: Spec) -> str:
    return f"{spec.FOLDER}/{key(spec)}"


def _stamp(manifest: os.stat_result) -> list[int]:
    """Which manifest, and whose keys: of another schema everything lies elsewhere."""
    return [SCHEMA, FORMAT, manifest.st_mtime_ns, manifest.st_size]


def _keep(roster: Roster, manifest: Path, stamp: list[int]) -> None:
    with suppress(OSError):  # a store that cannot be written can be looked at
        content = {"stamp": stamp, **vars(roster), "tracking": roster.tracking.model_dump()}
        write_atomically(manifest.with_name("roster.json"), json.dumps(content))


def _parsed(kept: dict[str, Any]) -> Roster:
    return Roster(
        study=kept["study"],
        entries=tuple(Entry(name, folder, tuple(waits), asked) for name, folder, waits, asked in kept["entries"]),
        needs=tuple(kept["needs"]),
        probes=tuple(kept["probes"]),
        chains={name: tuple(chain) for name, chain in kept["chains"].items()},
        trainings=tuple(kept["trainings"]),
        tracking=Tracking.model_validate(kept["tracking"]),
    )
