"""`logs [STUDY] POINT [--follow]`: what the build of a point, or of what it waited for, wrote."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cpt_lab import launches, roster, study
from cpt_lab.commands.words import Words
from cpt_lab.names import unknown
from cpt_lab.roster import Roster
from cpt_lab.store import State, Status, Store

POLL_SECONDS = 0.5
MOST_NAMES = 8  # of points that a word could mean
BLOCK = 1 << 16
FLAGS = ("--follow",)


def run(words: Words) -> int:
    """Print the log, and with --follow go on until the build has ended; 1 if it has no result then."""
    store = words.store
    title, folder = find(store, words.names)
    status = store.status_in(folder)
    print(f"# {title}: {_told(status)}")
    print(f"# {folder / 'log.txt'}", flush=True)
    if "--follow" in words.flags:
        return _follow(store, folder)
    if not _print_from(folder / "log.txt", 0):
        print(f"# nothing was logged; {_elsewhere(store, status)}")
    return 0


def find(store: Store, names: Sequence[str]) -> tuple[str, Path]:
    """(what it is, its folder) of the point, or of anything in the store by its key; of a blocked point: of what blocks it."""
    if not names:
        raise ValueError("logs: give a point by its name or by words of it, or anything else by its key")
    if folder := _by_key(store, names):
        return folder.name, folder
    first, *rest = names
    known = study.names(store)
    rosters = [roster.read(store, first)] if first in known and rest else [roster.read(store, name) for name in known]
    found = {(one.study, name): one for one in rosters for name in _matches(one, rest if first in known and rest else names)}
    if not found:
        every = [entry.name for one in rosters for entry in one.entries]
        raise KeyError(_no_point(" ".join(rest if first in known and rest else names), every, store))
    folders = {entry.folder for (_, name), one in found.items() for entry in one.entries if entry.name == name}
    if len(folders) > 1:
        shown = [f"{name!r} of {where}" for where, name in list(found)[:MOST_NAMES]]
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        raise ValueError(f"{' '.join(names)!r} can be {', '.join(shown)}{more}: say more of its name")
    (_, name), one = next(iter(found.items()))
    return _deepest(store, one, name)


def _matches(one: Roster, words: Sequence[str]) -> list[str]:
    """The points of this very name; else those whose names have all the words."""
    exact = [entry.name for entry in one.entries if entry.name == " ".join(words)]
    wanted = [part for word in words for part in word.split()]
    return exact or [entry.name for entry in one.entries if all(part in entry.name.split() for part in wanted)]


def _deepest(store: Store, one: Roster, name: str) -> tuple[str, Path]:
    """The point's own folder, or that of what failed, if the point is blocked: a blocked step's message begins with the key."""
    (entry,) = (entry for entry in one.entries if entry.name == name)
    status, title, folder = roster.states(store, replace(one, entries=(entry,)))[name], name, store.root / entry.folder
    seen = {folder}
    while status.state is State.BLOCKED and (cause := _by_key(store, status.message.split()[:1])) and cause not in seen:
        status, title, folder = store.status_in(cause), f"{name} waits for {cause.name}", cause
        seen.add(cause)
    return title, folder


def _by_key(store: Store, names: Sequence[str]) -> Path | None:
    if len(names) != 1 or not names[0] or "/" in names[0] or set(names[0]) & set("*?["):
        return None
    return next((path.parent for path in store.root.glob(f"*/{names[0]}/status.json")), None)


def _no_point(name: str, every: Sequence[str], store: Store) -> str:
    if not every:
        return f"no point {name!r}: no study was ever launched in {store.root}"
    said = unknown("point", name, every)
    return said if len(every) <= MOST_NAMES else f"{said.partition('; there are')[0]}; there are {len(every)}: give words of its name"


def _told(status: Status) -> str:
    return f"{status.state.value}{f', {status.message}' if status.message else ''}"


def _elsewhere(store: Store, status: Status) -> str:
    """Where the worker itself may have said something: a process that is killed logs nothing of a point."""
    found = next((launch for launch in launches.everyone(store) if launch.id == status.launch), None)
    return f"its workers' own output is in {found.folder / 'logs'}" if found else "no worker has begun it"


def _follow(store: Store, folder: Path) -> int:
    """Print what is added until the state is final."""
    place, waiting = 0, threading.Event()
    while True:
        state = store.status_in(folder).state  # before the log: what is written until the end is printed
        place += _print_from(folder / "log.txt", place)
        if state not in (State.PLANNED, State.QUEUED, State.RUNNING, State.PREEMPTED):
            print(f"# {_told(store.status_in(folder))}", flush=True)
            return 0 if state is State.DONE else 1
        waiting.wait(POLL_SECONDS)


def _print_from(path: Path, place: int) -> int:
    """Print a file from a byte on and return how many whole lines' bytes that were."""
    if not path.exists():
        return 0
    printed = 0
    with path.open("rb") as file:
        file.seek(place)
        for line in file:
            if not line.endswith(b"\n") and printed + place + len(line) < path.stat().st_size:
                break
            print(line.decode(errors="replace").rstrip("\n"), flush=True)
            printed += len(line)
    return printed
