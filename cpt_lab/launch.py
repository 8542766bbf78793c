"""One launch of a study: what its workers are told, in `<results>/launches/<id>/plan.json`, beside the code they run from."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cpt_lab import provenance, study
from cpt_lab.execution import Execution
from cpt_lab.plan import STAGES, Plan, Step
from cpt_lab.specs import AnySpec, Spec, parse
from cpt_lab.store import State, Store, write_atomically
from cpt_lab.study import Study
from cpt_lab.tracking_settings import Tracking


class Order(BaseModel):
    """A spec to build, in its stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    spec: AnySpec


class Launch(BaseModel):
    """What the workers of one launch share."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    study: str
    results: Path
    code: str
    command: str
    where: str
    how: Execution
    max_attempts: int
    tracking: Tracking
    orders: tuple[Order, ...]
    packs: tuple[tuple[str, ...], ...]

    @property
    def folder(self) -> Path:
        return self.results / "launches" / self.id

    def stages(self) -> tuple[str, ...]:
        present = {order.stage for order in self.orders}
        return tuple(stage for stage in STAGES if stage in present)

    def steps(self) -> list[tuple[str, Spec]]:
        """(stage, spec) of every order."""
        return [(order.stage, order.spec) for order in self.orders]

    def store(self) -> Store:
        return Store(self.results, launch=self.id)


def prepare(plan: Plan, asked: Study, store: Store, *, where: str, how: Execution, max_attempts: int) -> Launch:
    """Write a launch's folder: the plan, a snapshot of the code, and the study's steps as QUEUED."""
    code = provenance.snapshot(store.root)
    launch = Launch(
        id=f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}",
        study=asked.name,
        results=store.root,
        code=code.name,
        command=asked.command,
        where=where,
        how=how,
        max_attempts=max_attempts,
        tracking=asked.tracking,
        orders=tuple(Order(stage=step.stage, spec=step.spec) for step in plan.steps),
        packs=plan.packs,
    )
    (launch.folder / "logs").mkdir(parents=True)
    os.symlink(os.path.relpath(code, launch.folder), launch.folder / "code")
    write_atomically(launch.folder / "plan.json", launch.model_dump_json())
    queue = launch.store()
    for step in plan.steps:
        _queue(queue, step)
    return launch


def load(folder: Path) -> Launch:
    """The launch of a folder, its specs sharing their equal parts."""
    told = json.loads((folder / "plan.json").read_text())
    known: dict[str, Spec] = {}
    return Launch.model_validate({**told, "orders": [{**order, "spec": parse(order["spec"], known)} for order in told["orders"]]})


def environment(launch: Launch) -> dict[str, str]:
    """Environment of a worker: the snapshot's code first, no idle spinning of threads, no network where none is needed."""
    code = launch.folder / "code"
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(code), str(code / "launchers"), *([inherited] if inherited else [])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(launch.how.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "CPT_LAB_COMMAND": launch.command,
    }


def _queue(store: Store, step: Step) -> None:
    if store.status(step.spec).state not in (State.RUNNING, State.DONE) and not study.rankings_pending(step.spec):
        store.mark(step.spec, State.QUEUED)
