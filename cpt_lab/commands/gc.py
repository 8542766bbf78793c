"""`gc [--delete] [quota=GB]`: list what nothing refers to any more, and with --delete remove it.

Kept in every case: results, unless quota asks for room; what a study wants or a kept result needs; what somebody builds; the newest
launch of each study and those with jobs or workers; the code that a kept result or launch was made with.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cpt_lab import launches, roster, study
from cpt_lab.commands.words import Words
from cpt_lab.lease import claim, holder
from cpt_lab.specs import STORED, closure, key, parse
from cpt_lab.store import State, Store, read_json

SETTLED_SECONDS = 86400.0  # what is younger may be in the making: a launch, a snapshot, a file beside its place
MOST_LINES = 12
GB = 1e9
FLAGS = ("--delete",)
QUOTA = "quota="
KINDS = tuple(sorted({kind.FOLDER for kind in STORED if kind.FOLDER}))
LEFT_BEHIND = (".product-*", ".takeover-*", ".now-*", ".lease-*", ".*.json.*", ".DONE.*")


@dataclass(frozen=True)
class Waste:
    """Something that can go: what it is, why, and its bytes on disk."""

    path: Path
    what: str
    why: str
    size: int


def run(words: Words) -> int:
    """List, and with --delete remove; 1 if the store is above its quota afterwards."""
    store, quota_gb = words.store, _quota(words.names)
    found = list(waste(store))
    over = 0
    if quota_gb is not None:
        over = size(store.root) - sum(one.size for one in found) - round(quota_gb * GB)
        for one in spare(store, {one.path for one in found}) if over > 0 else ():
            found.append(one)
            over -= one.size
            if over <= 0:
                break
    _show(found, delete="--delete" in words.flags)
    if "--delete" in words.flags:
        kept = [one.path for one in found if not remove(store, one.path)]
        for path in kept:
            print(f"kept after all, for somebody works on it now: {path}")
    if over > 0:
        print(f"still {over / GB:,.2f} GB above the quota: all that is left is wanted by a study or being built")
    return 1 if over > 0 else 0


def _quota(names: Sequence[str]) -> float | None:
    """The room that the store may take; None: no limit."""
    for name in names:
        if not name.startswith(QUOTA):
            raise ValueError(f"gc {name}: it looks at the whole store; all it takes is --delete, quota=GB and results=FOLDER")
    try:
        quota = float(names[-1].removeprefix(QUOTA)) if names else None
    except ValueError:
        quota = -1.0
    if quota is not None and not 0 <= quota < float("inf"):
        raise ValueError(f"gc {names[-1]}: give the quota in GB, as in quota=500")
    return quota


def waste(store: Store) -> Iterator[Waste]:
    """What nothing refers to: unfinished and abandoned builds, their leavings, old launches, and code of none."""
    wanted = referred(store)
    now = time.time()
    kept, gone = _launches(store, now)
    for folder in _folders(store):
        yield from _of_folder(store, folder, wanted, kept, now)
    for path, why in gone:
        yield Waste(path, "launch", why, size(path))
    yield from _snapshots(store, kept, now)
    for path in store.root.glob(".gc-*"):
        if now - path.stat().st_ctime > SETTLED_SECONDS:  # since it was renamed
            yield Waste(path, "leavings", "a gc that was ended left it", size(path))


def referred(store: Store) -> set[str]:
    """The folders (kind/key) that any study wants; ValueError if a study cannot be read, for then nobody knows."""
    wanted: set[str] = set()
    for name in study.names(store):
        try:
            wanted |= roster.read(store, name).folders
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"study {name} cannot be read ({str(error).splitlines()[0]}): move {study.folder(store, name)} away first"
            ) from None
    return wanted


def spare(store: Store, gone: set[Path]) -> Iterator[Waste]:
    """Finished results that no study wants, and no result that stays needs: least lately made first. Nothing if a spec cannot be read."""
    needs = {name: found for name, found in _needs_of_results(store).items() if store.root / name not in gone}
    wanted = referred(store)
    users = Counter(need for found in needs.values() for need in found)
    free = [(_made(store, name), name) for name in needs.keys() - wanted if not users[name]]
    heapq.heapify(free)
    while free:
        _, name = heapq.heappop(free)
        users.subtract(needs[name])
        for need in needs[name] & needs.keys() - wanted:
            if not users[need]:
                heapq.heappush(free, (_made(store, need), need))
        if holder(store.root / name) is None:
            yield Waste(store.root / name, "result", "no study wants it", size(store.root / name))


def remove(store: Store, path: Path) -> bool:
    """Delete something of the store; False if somebody builds there. It is renamed first: nobody sees half of it."""
    is_build = path.parent.name in KINDS and path.parent.parent == store.root
    lease = claim(path) if is_build else None
    if is_build and lease is None:
        return False
    try:
        aside = store.root / f".gc-{uuid.uuid4().hex[:8]}"
        os.replace(path, aside)
    except FileNotFoundError:
        return True
    finally:
        if lease is not None:
            lease.release()
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    return True


def size(path: Path) -> int:
    """Bytes on disk of a file or folder; links are not followed, and files with several names count once."""
    if path.is_symlink() or not path.is_dir():
        return 512 * path.lstat().st_blocks
    seen: dict[int, int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:
                continue
            seen[found.st_ino] = 512 * found.st_blocks
    return sum(seen.values())


# -------------------------------------------------------------------------------------------------------------- helpers


def _folders(store: Store) -> Iterator[Path]:
    for kind in KINDS:
        root = store.root / kind
        if root.is_dir():
            yield from sorted(Path(entry.path) for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))


def _of_folder(store: Store, folder: Path, wanted: set[str], kept: dict[str, Path], now: float) -> Iterator[Waste]:
    """A build that was given up, or what a dead one left behind in a folder that stays."""
    names = set(os.listdir(folder))
    if "lease.json" in names and holder(folder) is not None:
        return
    done = "DONE" in names
    if not done and str(folder.relative_to(store.root)) not in wanted:
        status = store.status_in(folder)
        if status.launch not in kept and now - folder.stat().st_mtime > SETTLED_SECONDS and status.state is not State.RUNNING:
            yield Waste(folder, "abandoned build", f"{status.state.value}, and no study wants it", size(folder))
            return
    if done and "scratch" in names:
        yield Waste(folder / "scratch", "scratch", "its result is done", size(folder / "scratch"))
    for path in (path for pattern in LEFT_BEHIND for path in folder.glob(pattern)) if any(name[0] == "." for name in names) else ():
        if _is_old(path, now):
            yield Waste(path, "leavings", "a build that died left it", size(path))


def _is_old(path: Path, now: float) -> bool:
    try:
        return now - path.stat().st_mtime > SETTLED_SECONDS
    except FileNotFoundError:  # a worker's, for a moment
        return False


def _launches(store: Store, now: float) -> tuple[dict[str, Path], list[tuple[Path, str]]]:
    """(launches that stay, by id; those that go, with the reason)."""
    every = launches.everyone(store)
    newest = {launch.study: launch.id for launch in every}
    kept: dict[str, Path] = {}
    gone: list[tuple[Path, str]] = []
    for launch in every:
        old = now - (launch.folder / "plan.json").stat().st_mtime > SETTLED_SECONDS  # a look at its lease changes the folder's time
        if newest[launch.study] == launch.id or not old or _works(launch):
            kept[launch.id] = launch.folder
        else:
            gone.append((launch.folder, f"study {launch.study} was launched again"))
    return kept, gone


def _works(launch: launches.Found) -> bool:
    """Whether jobs or workers of it may be left; where SLURM cannot be asked, they may."""
    try:
        return bool(launch.workers_here() or launch.elsewhere() or (launch.tasks() and launch.tasks_left()))
    except ValueError:
        return True


def _snapshots(store: Store, kept: dict[str, Path], now: float) -> Iterator[Waste]:
    """Copies of the code that no launch runs from and no result was made with."""
    root = store.root / "code"
    old = [path for path in sorted(root.glob("*")) if now - path.stat().st_mtime > SETTLED_SECONDS]
    used = {os.path.basename(os.readlink(path / "code")) for path in kept.values() if (path / "code").is_symlink()}
    rest = [path for path in old if path.name not in used]
    if rest:
        used |= {str(read_json(folder / "provenance.json").get("code", "")) for folder in _folders(store)}
    for path in rest:
        if path.name not in used:
            yield Waste(path, "code", "no launch and no result was made with it", size(path))


def _made(store: Store, name: str) -> float:
    return (store.root / name / "DONE").stat().st_mtime


def _needs_of_results(store: Store) -> dict[str, set[str]]:
    """Finished result -> all that it needs, as folders; nothing at all if one of them is of another version."""
    found = {}
    for folder in _folders(store):
        if (folder / "DONE").exists():
            try:
                spec = parse(json.loads((folder / "spec.json").read_text()))
            except (ValueError, OSError):
                print(f"{folder / 'spec.json'} cannot be read by this version: no result is offered for deletion")
                return {}
            found[str(folder.relative_to(store.root))] = {f"{need.FOLDER}/{key(need)}" for need in closure(list(spec.needs()))}
    return found


def _show(found: Iterable[Waste], *, delete: bool) -> None:
    by_kind: dict[str, list[Waste]] = {}
    for one in found:
        by_kind.setdefault(one.what, []).append(one)
    for what, rest in by_kind.items():
        print(f"{what}: {len(rest)}, {sum(one.size for one in rest) / GB:,.3f} GB")
        for one in sorted(rest, key=lambda one: -one.size)[:MOST_LINES]:
            print(f"  {one.size / GB:>10,.3f} GB  {one.path}  ({one.why})")
        if len(rest) > MOST_LINES:
            print(f"  and {len(rest) - MOST_LINES} more")
    total = sum(one.size for rest in by_kind.values() for one in rest) / GB
    print(f"gc: {total:,.3f} GB {'deleted' if delete else 'can go; nothing was deleted, --delete does it'}")
