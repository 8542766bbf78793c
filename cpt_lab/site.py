"""A site: what one SLURM cluster wants to be told. The files of conf/site are values of this class; no result depends on it."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

ExtraValue = str | int | float | bool
StageName = Literal["data", "pretrain", "cpt", "spectra", "tables", "probe", "rank", "evaluate"]  # in the order in which they run

SEVERAL_NODES: tuple[StageName, ...] = ("pretrain", "cpt")

# Options of sbatch that have another place: what to use instead.
TAKEN: dict[str, str] = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time": "minutes",
    "mem": "memory_gb",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "signal": "signal_seconds",
    "array": "max_parallel",
}
# Options of sbatch that the launcher sets itself.
OURS = frozenset({"job-name", "output", "error", "open-mode", "dependency", "nodes", "ntasks", "ntasks-per-node", "chdir", "export"})


class Resources(BaseModel):
    """What the tasks of one stage ask for where it is not what the site gives every task."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    gpus: int | None = Field(default=None, ge=0, description="of one task and node; None: what the stage needs")
    nodes: int = Field(default=1, ge=1, description="of one task; only training uses more than one")
    minutes: int | None = Field(default=None, ge=1, description="its time limit, at most the site's")
    memory_gb: float | None = Field(default=None, gt=0)
    cpus_per_task: int | None = Field(default=None, ge=1)


class Site(BaseModel):
    """Where and with what a task of a launch runs on SLURM: one task is one process on one node, or a training over several."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    partition: str | None = Field(default=None, description="None: the cluster's default")
    account: str | None = None
    qos: str | None = None
    gpus_per_node: int = Field(default=0, ge=0, description="the most GPUs a task can have")
    gpu: str | None = Field(default=None, description="their kind, for estimates; None: an H100, or what this machine has")
    train_tokens_per_second: float | dict[str, float] | None = Field(
        default=None,
        description="of one GPU in training, for estimates: a number for every model, or one by model; None: as measured, or by FLOPs",
    )
    gpu_memory_gb: float = Field(default=80.0, gt=0, description="of one GPU: larger models are spread over several of a node")
    cpus_per_task: int = Field(default=1, ge=1)
    memory_gb: float | None = Field(default=None, gt=0, description="of one task; None: the cluster's default")
    minutes: int = Field(default=60, ge=1, description="the longest time limit of a task; longer work is requeued and goes on")
    signal_seconds: int = Field(default=120, ge=1, description="USR2 comes so long before the time limit (SLURM may be 60 s early)")
    pack_minutes: int = Field(default=60, ge=1, description="how long a task shall take: points are packed by their estimated time")
    stages: dict[StageName, Resources] = Field(default={}, description="stages that need something else, by name")
    max_parallel: int | None = Field(default=None, ge=1, description="tasks of a stage that run at a time; None: no limit")
    setup: tuple[str, ...] = Field(default=(), description="lines of bash before the worker starts: module loads and the like")
    extra: dict[str, ExtraValue] = Field(default={}, description="further options of sbatch, named as there; true: without a value")
    python: str | None = Field(default=None, description="the Python of the nodes; None: the one that submits")

    @field_validator("extra")
    @classmethod
    def _has_no_other_place(cls, extra: dict[str, ExtraValue]) -> dict[str, ExtraValue]:
        for option in extra:
            name = option.replace("_", "-")
            if name in TAKEN:
                raise ValueError(f"site.extra has {option!r}, which has a field of its own: set site.{TAKEN[name]}")
            if name in OURS:
                raise ValueError(f"site.extra has {option!r}, which the launcher sets itself: remove it")
        return {option.replace("_", "-"): value for option, value in extra.items() if value is not False}

    @field_validator("train_tokens_per_second", mode="before")
    @classmethod
    def _is_a_speed(cls, given: Any) -> Any:
        speeds = list(given.values()) if isinstance(given, dict) else [] if given is None else [given]
        if not all(isinstance(speed, int | float) and not isinstance(speed, bool) and 0 < speed < math.inf for speed in speeds):
            raise ValueError(
                f"got {given!r}: give the tokens that one GPU trains on in a second, above 0, like 45000, or by model, like "
                "{olmo2_1b: 45000, olmo2_7b: 10000}"
            )
        return given

    @field_validator("stages")
    @classmethod
    def _spread_training_only(cls, stages: dict[StageName, Resources]) -> dict[StageName, Resources]:
        for name, asked in stages.items():
            if asked.nodes > 1 and name not in SEVERAL_NODES:
                raise ValueError(f"site.stages.{name}.nodes is {asked.nodes}, and only {' and '.join(SEVERAL_NODES)} run on several nodes")
        return stages

    @field_validator("python")
    @classmethod
    def _is_a_path(cls, python: str | None) -> str | None:
        if python is not None and not PurePosixPath(python).is_absolute():
            raise ValueError(f"site.python is {python!r}: tasks start in another folder, give the whole path, like /opt/venv/bin/python")
        return python
