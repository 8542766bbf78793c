"""What every drill does: launch toys, let something happen, and hold afterwards what must hold whatever happened."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import toys
from cpt_lab import slurm, study, tracking
from cpt_lab.launch import Launch
from cpt_lab.site import Site
from cpt_lab.slurm import ENDED, Stage, job_states
from cpt_lab.specs import Evaluation, Spec, key
from cpt_lab.store import State, Store
from cpt_lab.tracking_settings import Tracking
from processes import wait_for
from spec_cases import PROTOCOL, TUNED, rewound_heads

BEAT_SECONDS = 0.5
SITE = Site(name="devcluster", partition="dev", minutes=10, signal_seconds=30, setup=(f"export TOY_BEAT_SECONDS={BEAT_SECONDS}",))
POINTS: tuple[Evaluation, ...] = (
    Evaluation(checkpoint=TUNED, protocol=PROTOCOL),
    *(Evaluation(checkpoint=rewound_heads(*toys.ORDER[:count]), protocol=PROTOCOL) for count in range(1, 8)),  # type: ignore[arg-type]
)
VICTIM = POINTS[3]


@dataclass(frozen=True)
class Drill:
    """A launch of toys, and SLURM's ids of its tasks."""

    told: Launch
    tasks: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        return self.told.results

    @property
    def store(self) -> Store:
        return self.told.store()

    def states(self) -> list[str]:
        """SLURM's states of the tasks."""
        found = job_states(self.tasks)
        return [found.get(task, "forgotten") for task in self.tasks]

    def wait_until_reached(self, spec: Spec = VICTIM) -> None:
        """A worker stands in this point."""
        wait_for(lambda: (self.store.folder(spec) / "hanging").exists(), what=f"the build of {key(spec)}", seconds=60)

    def open(self) -> None:
        """Let everybody go on, also those who come to the gate later."""
        (self.root / "open").touch()

    def wait_for_end(self, seconds: float = 100) -> list[str]:
        wait_for(lambda: set(self.states()) <= ENDED, what=f"the end of {self.tasks}", seconds=seconds)
        return self.states()


def told(root: Path, *, where: str = "slurm", packs: int = 2, points: Sequence[Spec] = POINTS, settings: Tracking | None = None) -> Launch:
    """A launch of the points whose victim waits at the gate."""
    toys.write_script(root, {key(VICTIM): "gate"})
    store = Store(root)
    return toys.prepared(store, toys.planned(store, points, packs=packs), max_attempts=4, where=where, tracking=settings)


def submit(launch: Launch, site: Site = SITE, packs: int = 2) -> Drill:
    """The launch as one array of workers that build whatever is ready."""
    (launch.folder / "code" / "sitecustomize.py").write_text(toys.CUSTOMIZE)
    slurm.submit(launch.folder, [Stage("all", packs=packs, minutes=site.minutes)], site)
    jobs = json.loads((launch.folder / "jobs.json").read_text())
    return Drill(launch, tuple(jobs["all"]["ids"]))


def check_once(root: Path, *, again: Sequence[Spec] = ()) -> None:
    """Every point is done, each was begun once (those of `again` more often), and nothing half stands about."""
    store = Store(root)
    assert {key(spec): store.status(spec).state for spec in POINTS} == {key(spec): State.DONE for spec in POINTS}
    begun = Counter(name for _, name in toys.notes(root))
    assert {name for name, count in begun.items() if count > 1} <= {key(spec) for spec in again}
    assert len(list((root / "evaluations").glob("*/DONE"))) == len(POINTS)
    for folder in (root / "evaluations").iterdir():
        assert json.loads((folder / "product" / "results.json").read_text()) == {}
    half = [path for pattern in (".product-*", "lease.json", ".lease-*", ".takeover-*") for path in root.glob(f"*/*/{pattern}")]
    assert half == []


def check_mlflow(root: Path, settings: Tracking, *, by: Tracking | None = None) -> None:
    """After a sync (by a server, if one is given) MLflow has every point once, finished, and another sync changes nothing."""
    store, asked = Store(root), study.load(Store(root), "toys")
    tracking.sync(store, asked, by or settings)
    names = Counter(name for name, status in runs(settings, store) if status == "FINISHED")
    assert {point.name for point in asked.points} <= set(names)
    assert set(names.values()) == {1}
    again = tracking.sync(store, asked, by or settings)
    assert (again.created, again.updated, again.pending) == (0, 0, 0)


def runs(settings: Tracking, store: Store) -> list[tuple[str, str]]:
    """(name, status) of the runs of a store, from MLflow's own tables."""
    database = sqlite3.connect(settings.within(store.root).database)
    identity = (store.root / "studies" / ".store-id").read_text()
    try:
        query = "select name, status from runs join tags on tags.run_uuid = runs.run_uuid where tags.key = 'cpt.store' and tags.value = ?"
        return database.execute(query, (identity,)).fetchall()
    finally:
        database.close()
