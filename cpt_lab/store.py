"""The store: a spec's key -> its folder, state, lease and product. The only module that knows paths of results.

`<results>/<kind>/<key>/` holds spec.json (what), status.json (how far), provenance.json (how it was made), log.txt, scratch/ (what an
interrupted build may go on from), product/ (the result) and DONE. A product is written beside and renamed; without DONE it is no result.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cpt_lab.lease import Lease, LeaseLost, claim, holder
from cpt_lab.specs import Spec, identity, key, parse

PROGRESS_SECONDS = 0.5  # how often a build may rewrite its progress file


class State(StrEnum):
    """How far a spec is. BLOCKED: something it needs failed. LOST: its worker died without a word."""

    PLANNED = "planned"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PREEMPTED = "preempted"
    TIMEOUT = "timeout"
    LOST = "lost"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Status:
    state: State
    message: str = ""
    attempts: int = 0
    since: float = 0.0
    job: str = ""
    launch: str = ""


class SpecConflict(ValueError):
    """Two different specs under one key."""


def write_atomically(path: Path, content: str | bytes) -> os.stat_result:
    """Write by a temporary sibling and rename: readers see the old content or the new one, never half of it. What was written, as stat."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        written = beside.stat()
        os.replace(beside, path)
        return written
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is none or it is not whole."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return data if isinstance(data, dict) else {}


class Workspace:
    """What a builder may write to: `product` becomes the result, `scratch` outlives an interruption of the build."""

    def __init__(self, folder: Path, product: Path) -> None:
        self.folder = folder
        self.product = product
        self.scratch = folder / "scratch"
        self.seconds: float | None = None  # of all attempts, by a builder that goes on from where an earlier one was interrupted
        self._reported = 0.0

    def clear(self) -> None:
        """Throw away what was written of the product."""
        shutil.rmtree(self.product)
        self.product.mkdir()

    def progress(self, done: float, total: float, unit: str) -> None:
        """Tell the watchers how far the build is: `done` of `total` units (tokens, items, matrices)."""
        now = time.time()
        if now - self._reported < PROGRESS_SECONDS and done < total:
            return
        self._reported = now
        write_atomically(self.folder / "progress.json", json.dumps({"done": done, "total": total, "unit": unit, "time": now}))


class Store:
    """All results below one root folder."""

    def __init__(self, root: Path, launch: str = "") -> None:
        self.root = Path(root).absolute()
        self.launch = launch  # whose workers write states here; attempts are counted per launch

    def check_writable(self) -> None:
        """ValueError, in one sentence, if nothing can be written here."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"results folder {self.root} cannot be written ({error.strerror}): free some space or choose another with results=FOLDER"
            ) from None

    # ------------------------------------------------------------------------------------------------------- reading

    def folder(self, spec: Spec) -> Path:
        """Where everything about this spec lies, whether it exists or not."""
        if not spec.FOLDER:
            raise TypeError(f"{type(spec).__name__} is only ever part of another spec: it has no folder")
        return Path(f"{self.root}/{spec.FOLDER}/{key(spec)}")

    def product(self, spec: Spec) -> Path:
        """The product of a finished spec; KeyError if it is not done."""
        if not self.is_done(spec):
            raise KeyError(f"{key(spec)} is not done: build it first")
        return self.folder(spec) / "product"

    def is_done(self, spec: Spec) -> bool:
        return (self.folder(spec) / "DONE").exists()

    def status(self, spec: Spec) -> Status:
        """What is known of this spec now; a RUNNING whose worker has died reads LOST."""
        return self.status_in(self.folder(spec))

    def status_in(self, folder: Path) -> Status:
        """The status of what lies in a folder of the store; ValueError if another version wrote it."""
        if not os.path.exists(folder):
            return Status(State.PLANNED)
        written = read_json(folder / "status.json")
        try:
            base = Status(**{**written, "state": State(written.get("state", State.PLANNED))})
        except (TypeError, ValueError):
            raise ValueError(
                f"{folder / 'status.json'} was written by another version of cpt_lab: use that one, or another results folder"
            ) from None
        if os.path.exists(folder / "DONE"):
            return replace(base, state=State.DONE, message="")
        if holder(folder) is not None:
            return replace(base, state=State.RUNNING)
        if base.state is State.RUNNING or base.state is State.DONE:
            return replace(base, state=State.LOST, message="its worker ended without a word")
        return base

    def progress(self, spec: Spec) -> dict[str, Any]:
        """{done, total, unit, time} of a running build, or nothing."""
        return read_json(self.folder(spec) / "progress.json")

    def provenance(self, spec: Spec) -> dict[str, Any]:
        return read_json(self.folder(spec) / "provenance.json")

    # ------------------------------------------------------------------------------------------------------- writing

    def describe(self, spec: Spec) -> Path:
        """Make the spec's folder with its spec.json; SpecConflict if another spec lies under the same key."""
        folder = self.folder(spec)
        if not self.check(spec):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "spec.json", _description(spec))
        return folder

    def check(self, spec: Spec) -> bool:
        """Whether the spec's folder describes it already; SpecConflict if it describes another spec."""
        path = f"{self.folder(spec)}/spec.json"
        if not os.path.exists(path):
            return False
        text = Path(path).read_text()
        if text == _description(spec):  # nearly always; a launch of thousands of points checks them all
            return True
        stored = identity(parse(json.loads(text)))
        if stored != identity(spec):
            raise SpecConflict(f"two different specs under the key {key(spec)}: {_difference(stored, identity(spec))}")
        return True

    def queue(self, spec: Spec, *, earlier: Set[str] = frozenset()) -> None:
        """Mark a step that a launch will come to, unless somebody builds or has built it, or one of these earlier launches marked it.

        Who claims it describes it: the specs of thousands of points take long to write.
        """
        folder = self.folder(spec)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            found = self.status_in(folder)
            waits = found.state is State.QUEUED and found.launch in earlier
            if not waits and found.state not in (State.RUNNING, State.DONE):
                self.remark(folder, State.QUEUED)
        else:
            self._write_status(folder, State.QUEUED, "", attempts=0)

    def mark(self, spec: Spec, state: State, message: str = "") -> None:
        """Write the state; a build that starts counts as one more attempt."""
        self.remark(self.describe(spec), state, message)

    def remark(self, folder: Path, state: State, message: str = "") -> None:
        """`mark` for a folder of the store as it is."""
        before = read_json(folder / "status.json")
        attempts = int(before.get("attempts", 0)) if before.get("launch") == self.launch else 0
        self._write_status(folder, state, message, attempts=attempts + (state is State.RUNNING))

    def _write_status(self, folder: Path, state: State, message: str, *, attempts: int) -> None:
        job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or ""
        status = Status(state, message, attempts, time.time(), job, self.launch)
        write_atomically(folder / "status.json", json.dumps(vars(status)))

    def claim(self, spec: Spec) -> Lease | None:
        """The right to build this spec, or None if somebody alive has it."""
        return claim(self.describe(spec))

    @contextmanager
    def building(self, spec: Spec, lease: Lease) -> Iterator[Workspace]:
        """A workspace whose product becomes the result when the block ends well; what fails leaves no product.

        The state is left to the caller, who knows why the block ended.
        """
        folder = self.folder(spec)
        self.clean(spec)
        product = folder / f".product-{lease.owner.id[:8]}"
        product.mkdir(parents=True)
        self.mark(spec, State.RUNNING)
        try:
            yield Workspace(folder, product)
            if not lease.held():
                raise LeaseLost(f"{key(spec)} was taken over by another worker while this one built it: its result counts")
            self._publish(spec, product)
        finally:
            shutil.rmtree(product, ignore_errors=True)
            (folder / "progress.json").unlink(missing_ok=True)

    def clean(self, spec: Spec) -> None:
        """Remove what a dead build left behind, but for its scratch. Call it with the lease in hand."""
        folder = self.folder(spec)
        assert not (folder / "DONE").exists(), "a finished product is never cleaned"
        for rest in [*folder.glob(".product-*"), folder / "product"]:
            shutil.rmtree(rest, ignore_errors=True)

    def _publish(self, spec: Spec, product: Path) -> None:
        folder = self.folder(spec)
        _sync(product)
        os.replace(product, folder / "product")
        write_atomically(folder / "DONE", f"{time.time()}\n")
        self.mark(spec, State.DONE)
        shutil.rmtree(folder / "scratch", ignore_errors=True)

    def write_provenance(self, spec: Spec, facts: dict[str, Any]) -> None:
        write_atomically(self.folder(spec) / "provenance.json", json.dumps(facts, indent=1, default=str))


def _description(spec: Spec) -> str:
    return spec.model_dump_json(indent=1)


def _sync(folder: Path) -> None:
    """Flush the files of a folder to the disk, so that DONE never stands before its product after a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _difference(stored: Any, given: Any, where: str = "") -> str:
    """The first place where two identities differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        for name in sorted(set(stored) | set(given)):
            if stored.get(name) != given.get(name):
                return _difference(stored.get(name), given.get(name), f"{where}.{name}" if where else name)
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for index, (left, right) in enumerate(zip(stored, given, strict=True)):
            if left != right:
                return _difference(left, right, f"{where}[{index}]")
    return f"{where} is {stored!r} in the store and {given!r} here; move the stored folder away or use another results folder"
