"""What a study was launched with, kept in the launch's folder: `resume` and `retry` launch it again from files, without composing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from cpt_lab import launches, study
from cpt_lab.commands.words import Words
from cpt_lab.config import Settings
from cpt_lab.specs import Spec, closure, key, rankings_of
from cpt_lab.store import State, Store, read_json, write_atomically
from cpt_lab.study import Point, Study

FLAGS = ("--failed", "--lost")
STATES = {"--failed": frozenset({State.FAILED, State.TIMEOUT}), "--lost": frozenset({State.LOST})}


def keep(folder: Path, chosen: Settings) -> None:
    """Remember the settings of a launch in its folder."""
    write_atomically(folder / "settings.json", chosen.model_dump_json())


def last(store: Store, name: str) -> tuple[Study, Settings, str]:
    """(study, settings, launcher) of the study's newest launch; KeyError if it is unknown, ValueError if it was never launched."""
    if name not in study.names(store):
        raise KeyError(study.no_such(store, name))
    for launch in reversed(launches.of_study(store, name)):
        if kept := read_json(launch.folder / "settings.json"):
            return study.load(store, name), _settings(kept, launch.folder, store), launch.where
    command = study.load(store, name).command
    raise ValueError(f"study {name} was never launched, or by another version of cpt_lab: launch it with {command or 'its own command'}")


def among(words: Words, store: Store, asked: Study) -> list[Point]:
    """The points without a result because something of them failed (--failed), was lost with its worker (--lost), or either."""
    wanted = frozenset().union(*(STATES[flag] for flag in words.flags or FLAGS))
    resolved = study.resolved(store, asked.points)
    needed = {point.name: _needed(resolved[point.name]) for point in asked.points}
    every = {key(spec): spec for specs in needed.values() for spec in specs}
    hit = {name for name, spec in every.items() if store.status(spec).state in wanted}
    open_points = [point for point in asked.points if not store.is_done(resolved[point.name])]
    return [point for point in open_points if any(key(spec) in hit for spec in needed[point.name])]


def _needed(spec: Spec) -> Sequence[Spec]:
    """The point itself and all that it, and the rankings that it waits for, need."""
    return [one for one in closure([spec, *rankings_of(spec)]) if one.FOLDER]


def _settings(kept: dict[str, object], folder: Path, store: Store) -> Settings:
    try:
        chosen = Settings.model_validate_json(json.dumps(kept))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{folder / 'settings.json'} was written by another version of cpt_lab ({'.'.join(map(str, first['loc']))}: {first['msg']}): "
            "launch the study with its own command"
        ) from None
    return chosen.model_copy(update={"results": store.root})
