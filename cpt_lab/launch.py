"""One launch of a study: what its workers are told, in `<results>/launches/<id>/plan.json`, beside the code they run from."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cpt_lab import launches, provenance, study
from cpt_lab.execution import Execution
from cpt_lab.plan import STAGES, Plan
from cpt_lab.specs import AnySpec, Parts, Spec, Unit, from_parts, key, read_parts, settled
from cpt_lab.store import Store, write_atomically
from cpt_lab.study import Study
from cpt_lab.tracking_settings import Tracking


class Order(BaseModel):
    """A spec to build, in its stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    key: str
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
        orders=tuple(Order(stage=step.stage, key=step.key, spec=step.spec) for step in plan.steps),
        packs=plan.packs,
    )
    (launch.folder / "logs").mkdir(parents=True)
    os.symlink(os.path.relpath(code, launch.folder), launch.folder / "code")
    write_atomically(launch.folder / "plan.json", json.dumps(_written(launch, plan), separators=(",", ":")))
    queue, earlier = launch.store(), frozenset(found.id for found in launches.of_study(store, asked.name))
    for step in plan.steps:
        if not study.rankings_pending(step.spec):
            queue.queue(step.spec, earlier=earlier)
    return launch


def load(folder: Path) -> Launch:
    """The launch of a folder, its specs sharing their equal parts; ValueError if a ranking that it was planned with is gone."""
    told = json.loads((folder / "plan.json").read_text())
    parts = read_parts(told.pop("parts"))
    orders = [Order(**{**order, "spec": from_parts(order["spec"], parts)}) for order in told["orders"]]
    short = [order.spec for order in orders if key(order.spec) != order.key]
    ranked = study.orders(Store(Path(told["results"])), short)
    return Launch.model_validate({**told, "orders": [_as_planned(order, ranked) for order in orders]})


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


def _written(launch: Launch, plan: Plan) -> dict[str, Any]:
    """The launch as JSON values: points as they were asked for, which is short, and what they have in common once."""
    known = [point for point in plan.points if not study.rankings_pending(plan.resolved[point.name])]  # the others may come to more yet
    asked_for = {key(plan.resolved[point.name]): point.spec for point in known}
    parts = Parts()
    orders = [{**vars(order), "spec": parts.write(asked_for.get(order.key, order.spec))} for order in launch.orders]
    return {**launch.model_dump(mode="json", exclude={"orders"}), "parts": parts.written, "orders": orders}


def _as_planned(order: Order, ranked: Mapping[str, tuple[Unit, ...]]) -> Order:
    """The order with the units that its rankings select, if they were known when it was written."""
    if key(order.spec) == order.key:
        return order
    spec = settled(order.spec, dict(ranked))
    if key(spec) != order.key:
        raise ValueError(f"{order.key}: a ranking that it was planned with is gone, or another now; launch the study again")
    return order.model_copy(update={"spec": spec})
