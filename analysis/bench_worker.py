"""`make bench`: what a worker needs for a point beside its evaluation (look, claim, write, log), in small and in large studies."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cpt_lab import build, launch, plan, study
from cpt_lab.build import Stopped
from cpt_lab.execution import Execution
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.specs import BuiltinCorpus, Evaluation, FolderCheckpoint, GenerateTask, Heads, ModelShape, Patched, Protocol, Spec
from cpt_lab.store import State, Store, Workspace
from cpt_lab.study import Point, Study
from cpt_lab.tracking_settings import Tracking
from cpt_lab.worker import EVERY_STAGE, Worker

SIZES = (100, 1000, 5000, 10_000)
WARM_UP, TIMED = 5, 40  # points that are built, of the half of a study that is still to do
SHAPE = ModelShape(
    name="7B", family="olmo2", hidden_size=4096, num_layers=32, num_heads=32, num_kv_heads=32, head_dim=128, mlp_size=11008,
    vocab_size=100278, context=4096,
)  # fmt: skip


def main() -> None:
    """Print the median milliseconds of a point by the size of the study, and their ratio."""
    medians = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as name:
            times = _times(Path(name), size)
        medians[size] = 1000 * statistics.median(times)
        print(f"worker, {size} points in the store: {medians[size]:.1f} ms a point (median of {len(times)})", flush=True)
    print(f"{SIZES[-1]} points cost {medians[SIZES[-1]] / medians[SIZES[0]]:.2f} times as much a point as {SIZES[0]}")


def _times(root: Path, size: int) -> list[float]:
    """Seconds from one begun build to the next, by a worker whose builds write one small file."""
    specs = many_points(root, size)
    store = Store(root)
    for spec in specs[size // 2 :]:
        _finish(store, spec)
    points = tuple(Point(name=str(index), varies={}, config={}, spec=spec) for index, spec in enumerate(specs))
    made = plan.make(points, status=store.status, orders={}, workers=8)
    asked = Study(name="bench", points=points, tracking=Tracking(kind="off"))
    study.save(store, asked)
    told = launch.prepare(made, asked, store, where="local", how=Execution(), max_attempts=3)
    begun: list[float] = []

    def note(_workshop: object, _spec: Spec, work: Workspace) -> None:
        begun.append(time.perf_counter())
        (work.product / "results.json").write_text("{}")

    def stop() -> None:
        if len(begun) > WARM_UP + TIMED:
            raise Stopped(State.CANCELLED)

    builders: dict[type[Spec], Any] = dict.fromkeys(build.BUILDERS, note)
    with patch.object(build, "BUILDERS", builders), suppress(Stopped):
        Worker(told, EVERY_STAGE, 0, check=stop).run()
    return [later - earlier for earlier, later in itertools.pairwise(begun[WARM_UP:])]


def many_points(root: Path, size: int) -> list[Evaluation]:
    """So many evaluations of one checkpoint, each with other heads rewound."""
    base, tuned = (FolderCheckpoint(path=str(root / name), weights_digest=name, shape=SHAPE) for name in ("base", "tuned"))
    task = GenerateTask(name="sums", corpus=BuiltinCorpus(name="math", documents=40, held_out=4), items=4, max_new_tokens=8)
    protocol = Protocol(name="bench", tasks=(task,), harness="0")
    units = [(layer, head) for layer in range(32) for head in range(32)]
    found = []
    for index in range(size):
        heads = tuple(sorted({units[index % 1024], units[(index * 7 + index // 1024 + 1) % 1024]}))
        change = Rewind(base=base, select=Heads(heads=heads))
        found.append(Evaluation(checkpoint=Patched(tuned=tuned, interventions=(change,)), protocol=protocol))
    return list(dict.fromkeys(found))


def _finish(store: Store, spec: Spec) -> None:
    """The spec's folder as a finished build leaves it."""
    folder = store.describe(spec)
    (folder / "product").mkdir()
    (folder / "product" / "results.json").write_text("{}")
    (folder / "DONE").write_text("")
    store.mark(spec, State.DONE)


if __name__ == "__main__":
    main()
