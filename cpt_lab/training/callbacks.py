"""What happens beside the training steps: metrics on disk, progress, divergence, and a state to resume from.

OLMo-core's callbacks are a base class, so this module needs it at import: import it where training starts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from olmo_core.train.callbacks import Callback, CheckpointerCallback
from olmo_core.train.common import TRAIN_CE_LOSS_METRIC

from cpt_lab.store import write_atomically
from cpt_lab.training.engine import COLLECT_STEPS

LINES = 500  # of metrics.jsonl at most, evenly spread over the steps
MEGABYTE = 2**20
NAMES = {
    TRAIN_CE_LOSS_METRIC: "loss",
    "train/Z loss": "z_loss",
    "optim/LR (group 0)": "lr",
    "optim/total grad norm": "grad_norm",
}


class Diverged(ValueError):
    """The loss is no longer a number."""


@dataclass
class Recorder(Callback):
    """Appends metrics to a jsonl file, tells the progress and stops a run whose loss is not finite."""

    path: Path
    steps: int
    report: Callable[[float, float, str], None]
    _since: tuple[float, int] = (0.0, 0)

    def pre_train(self) -> None:
        """Drop what an interrupted run wrote after the state that this one goes on from."""
        write_atomically(self.path, "".join(f"{line}\n" for line in lines_up_to(self.path, self.step)))
        self._since = (time.perf_counter(), self.trainer.global_train_tokens_seen)

    def post_train_batch(self) -> None:
        if self.step % COLLECT_STEPS:
            return
        loss = self.trainer.get_metric(TRAIN_CE_LOSS_METRIC)
        if loss is not None and not math.isfinite(float(loss)):
            raise Diverged(f"training diverged: loss {float(loss)} at step {self.step}: lower training.lr or raise training.warmup_tokens")

    def post_step(self) -> None:
        self.report(self.trainer.global_train_tokens_seen, self.steps * self.trainer.global_batch_size, "tokens")

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        if TRAIN_CE_LOSS_METRIC not in metrics:
            return  # recorded before the first step of this process
        if step % max(1, self.steps // LINES) and step != self.steps:
            return
        line = {"step": step, "tokens": step * self.trainer.global_batch_size, **renamed(metrics)}
        line |= {"tokens_per_second": self._speed(), **system_metrics()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _speed(self) -> float:
        started, tokens = self._since
        seen: int = self.trainer.global_train_tokens_seen
        return (seen - tokens) / max(time.perf_counter() - started, 1e-9)


@dataclass
class TimedCheckpointer(CheckpointerCallback):
    """Keeps one state to resume from: every so many minutes, and when the run is told to stop."""

    save_interval: int | None = None
    pre_train_checkpoint: bool | None = False
    save_async: bool | None = False
    max_checkpoints: int | None = 1
    minutes: float = 20.0
    _last: float = 0.0

    def pre_train(self) -> None:
        super().pre_train()
        self._last = time.monotonic()

    def post_train_batch(self) -> None:
        if time.monotonic() - self._last >= 60 * self.minutes:
            self._checkpoints.append(self._save_checkpoint())
            self._trim_checkpoints()
            self._remove_old_checkpoints()
            self._last = time.monotonic()

    def post_train(self) -> None:
        if self.trainer.is_canceled:
            super().post_train()


def lines_up_to(path: Path, step: int) -> list[str]:
    """The whole lines of a metrics file up to a step; a kill can leave the last one cut."""
    if not path.exists():
        return []
    whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line.strip() for line in whole if json.loads(line)["step"] <= step]


def renamed(metrics: dict[str, float]) -> dict[str, float]:
    """OLMo-core's metrics by our names; what a run does not have is left out."""
    return {ours: metrics[theirs] for theirs, ours in NAMES.items() if theirs in metrics}


def system_metrics() -> dict[str, float]:
    """Load of the machine, named and measured like MLflow's system metrics (percentages and megabytes)."""
    memory = psutil.virtual_memory()
    metrics: dict[str, Any] = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_percentage": memory.percent,
        "system/system_memory_usage_megabytes": memory.used / MEGABYTE,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        metrics["system/gpu_0_memory_usage_percentage"] = 100 * (1 - free / total)
        metrics["system/gpu_0_memory_usage_megabytes"] = (total - free) / MEGABYTE
    return metrics
