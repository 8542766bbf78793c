"""Real workers with toy builders: `python -m cpt_lab.worker` as the launchers start it, but every build is a note on a file.

What a build does is said by a script, key -> one of SCRIPTS, which the test may rewrite between two runs.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_lab import launch, plan, study
from cpt_lab.execution import Execution
from cpt_lab.launch import Launch
from cpt_lab.specs import Ranking, Spec, key
from cpt_lab.store import Store, Workspace, read_json
from cpt_lab.study import Point, Study
from cpt_lab.tracking_settings import Tracking

SCRIPTS = ("hang", "hang deaf", "hang dead", "die", "segfault", "leave", "exit", "fail", "poison", "large N", "gate NAME", "no space")
if TYPE_CHECKING:
    import pytest

    from cpt_lab import local
    from cpt_lab.build import Workshop

ORDER = tuple((layer, head) for layer in (1, 0) for head in range(4))
TESTS = Path(__file__).parent
RESULTS = {"metrics": {"toys/score": {"value": 0.5, "stderr": 0.25, "n": 8, "higher_is_better": True}}}
CUSTOMIZE = f"import sys\nsys.path.append({str(TESTS)!r})\nimport toys\ntoys.install()\n"


def install() -> None:
    """Replace the builders of this process; sitecustomize calls it in workers. torch has nothing to do here and is not imported."""
    from cpt_lab import build, deadline, lease

    sys.modules["torch"] = types.SimpleNamespace(set_num_threads=lambda _: None)  # type: ignore[assignment]
    deadline.GRACE_SECONDS = float(os.environ.get("TOY_GRACE_SECONDS", deadline.GRACE_SECONDS))
    lease.BEAT_SECONDS = float(os.environ.get("TOY_BEAT_SECONDS", lease.BEAT_SECONDS))
    hours, host = float(os.environ.get("TOY_CLOCK_HOURS", 0)), os.environ.get("TOY_HOST", socket.gethostname())
    clock = time.time
    time.time, socket.gethostname = (lambda: clock() + 3600 * hours), (lambda: host)
    for kind in build.BUILDERS:
        build.BUILDERS[kind] = toy
    if "TOY_START" in os.environ:
        start_slowly(Path(os.environ["TOY_START"]))


def start_slowly(folder: Path) -> None:
    """As long as the test likes, for it to see what happens to a process that only begins; once there is `begin`, at once."""
    (folder / "starting").touch()
    while not (folder / "begin").exists():
        time.sleep(0.02)


def toy(workshop: Workshop, spec: Spec, work: Workspace) -> None:
    """Note who builds what, then do what the script says."""
    root = work.folder.parents[1]
    with (root / "notes.txt").open("a") as file:
        file.write(f"{os.getpid()} {key(spec)}\n")
    if isinstance(spec, Ranking):
        (work.product / "ranking.json").write_text(json.dumps({"order": ORDER}))
    (work.product / "results.json").write_text(json.dumps(RESULTS))
    act(str(read_json(root / "script.json").get(key(spec), "")), work, workshop)


def act(script: str, work: Workspace, workshop: Workshop) -> None:
    word, _, argument = script.partition(" ")
    if word == "large" and workshop.how.rows(64) > int(argument):
        (work.product / "half").touch()
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if word == "gate":
        (work.folder / "hanging").touch()
        while not (work.folder.parents[1] / f"open{argument}").exists():
            threading.Event().wait(0.05)
    if script in ENDS:
        ENDS[script]()
    if script == "hang dead":  # code that never lets another thread run: one long step of compiled code
        (work.folder / "hanging").touch()
        ctypes.PyDLL(None).sleep(3600)
    if script.startswith("hang"):
        (work.folder / "hanging").touch()
        while True:
            try:
                threading.Event().wait()
            except BaseException:
                if script != "hang deaf":  # a library that swallows what a signal raises
                    raise
                return


def fail(error: Exception) -> None:
    raise error


ENDS: dict[str, Callable[[], object]] = {
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "leave": lambda: os._exit(3),
    "exit": lambda: sys.exit(0),
    "fail": lambda: fail(ValueError("told to fail")),
    "poison": lambda: fail(RuntimeError("CUDA error: an illegal memory access was encountered")),
    "no space": lambda: fail(OSError(errno.ENOSPC, "No space left on device")),
}


def write_script(root: Path, actions: dict[str, str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "script.json").write_text(json.dumps(actions))


def notes(root: Path) -> list[tuple[int, str]]:
    """(process, key) of every build that was begun, in order."""
    lines = (root / "notes.txt").read_text().splitlines() if (root / "notes.txt").exists() else []
    return [(int(process), name) for process, name in map(str.split, lines)]


def told(root: Path, specs: Sequence[Spec], *, packs: int = 2, max_attempts: int = 2, how: Execution | None = None) -> Launch:
    """A launch of a study whose points are these specs."""
    store = Store(root)
    return prepared(store, planned(store, specs, packs=packs), max_attempts=max_attempts, how=how)


def planned(store: Store, specs: Sequence[Spec], *, packs: int = 2) -> plan.Plan:
    points = tuple(Point(name=f"point {index}", varies={}, config={}, spec=spec) for index, spec in enumerate(specs))
    return plan.make(points, status=store.status, orders=study.orders(store, list(specs)), workers=packs)


def prepared(
    store: Store,
    made: plan.Plan,
    *,
    max_attempts: int = 2,
    how: Execution | None = None,
    where: str = "local",
    tracking: Tracking | None = None,
) -> Launch:
    asked = Study(name="toys", command="python -m cpt_lab +experiment=toys", points=made.points, tracking=tracking or Tracking(kind="off"))
    study.save(store, asked)
    return launch.prepare(made, asked, store, where=where, how=how or Execution(), max_attempts=max_attempts)


def crew(told: Launch, patch: pytest.MonkeyPatch, count: int = 2) -> local.Crew:
    """The local launcher's own crew, of toy workers."""
    from cpt_lab import local  # not in the workers themselves: it imports the module that they run

    patch.setenv("PYTHONPATH", str(customized(told)))
    crew = local.Crew(told, count)
    crew.start()
    return crew


@contextmanager
def workers(
    told: Launch, count: int = 1, *, stage: str = "all", environment: dict[str, str] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """So many toy workers of a launch; those that are still there at the end are killed."""
    place = launch.environment(told) | (environment or {})
    place["PYTHONPATH"] += f":{customized(told)}"
    command = [sys.executable, "-m", "cpt_lab.worker", str(told.folder), "--stage", stage, "--pack"]
    started = [
        subprocess.Popen(
            [*command, str(index)], cwd=told.folder / "code", env=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for index in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def customized(told: Launch) -> Path:
    """A folder for PYTHONPATH that turns every Python started with it into a toy worker."""
    folder = told.results.parent / "toys"
    folder.mkdir(exist_ok=True)
    if not (folder / "sitecustomize.py").exists():  # the disk may be read-only by now
        (folder / "sitecustomize.py").write_text(CUSTOMIZE)
    return folder
