"""What every drill does: launch toys, let something happen, and hold afterwards what must hold whatever happened."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy

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
        wait_for(lambda: (self.store.folder(spec) / "hanging").exists(), what=f"the build of {key(spec)}")

    def open(self) -> None:
        """Let everybody go on, also those who come to the gate later."""
        (self.root / "open").touch()

    def wait_for_end(self) -> list[str]:
        wait_for(lambda: set(self.states()) <= ENDED, what=f"the end of {self.tasks}")
        return self.states()


def told(
    root: Path,
    *,
    where: str = "slurm",
    packs: int = 2,
    points: Sequence[Spec] = POINTS,
    settings: Tracking | None = None,
    gates: Mapping[str, str] | None = None,
) -> Launch:
    """A launch of the points whose victim waits at the gate, or where some keys wait at gates of their names."""
    toys.write_script(root, {name: f"gate {gate}".strip() for name, gate in (gates or {key(VICTIM): ""}).items()})
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
        assert json.loads((folder / "product" / "results.json").read_text()) == toys.RESULTS
    half = [path for pattern in (".product-*", "lease.json", ".lease-*", ".takeover-*") for path in root.glob(f"*/*/{pattern}")]
    assert half == [], half


def check_mlflow(root: Path, settings: Tracking, *, database: str = "") -> None:
    """After a sync MLflow equals the store, with every point and every value once, and another sync changes nothing.

    `database` is that of a server, for a look at MLflow's own tables.
    """
    store, asked = Store(root), study.load(Store(root), "toys")
    tracking.sync(store, asked.name, settings)
    tables = database or settings.within(store.root).address
    names = Counter(name for name, status in runs(tables, store) if status == "FINISHED")
    assert {point.name for point in asked.points} <= set(names)
    assert set(names.values()) == {1}
    twice = "select key from metrics where key not like 'points/%' group by run_uuid, key, step having count(*) > 1"
    assert query(tables, twice) == []
    found = tracking.reconcile(store, asked.name, settings)
    assert (found.mended, found.closed) == (0, 0)
    again = tracking.sync(store, asked.name, settings)
    assert (again.created, again.updated, again.pending) == (0, 0, 0)


def runs(database: str, store: Store) -> list[tuple[str, str]]:
    """(name, status) of the runs of a store, from MLflow's own tables."""
    identity = (store.root / "studies" / ".store-id").read_text()
    wanted = f"select name, status from runs join tags using (run_uuid) where key = 'cpt.store' and value = '{identity}'"
    return [(str(name), str(status)) for name, status in query(database, wanted)]


def query(database: str, text: str) -> list[tuple[object, ...]]:
    """Rows of a database by its SQLAlchemy address."""
    engine = sqlalchemy.create_engine(database)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(text))]
    finally:
        engine.dispose()
