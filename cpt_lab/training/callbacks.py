"""What happens beside the training steps: metrics on disk, progress, divergence, and a state to resume from.

OLMo-core's callbacks are a base class, so this module needs it at import: import it where training starts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import torch
import torch.distributed as dist
from olmo_core.distributed.utils import broadcast_object, get_local_tensor, get_rank, get_world_size, is_distributed
from olmo_core.train.callbacks import Callback, CheckpointerCallback
from olmo_core.train.common import TRAIN_CE_LOSS_METRIC

from cpt_lab.store import write_atomically
from cpt_lab.training.engine import COLLECT_STEPS

if TYPE_CHECKING:
    from olmo_core.data import DataLoaderBase

LINES = 500  # of metrics.jsonl at most, evenly spread over the steps
MEGABYTE = 2**20
VALIDATION = "validation"
ASKED = "SIGUSR2 received by the process that started the ranks"
NAMES = {
    TRAIN_CE_LOSS_METRIC: "loss",
    "train/Z loss": "z_loss",
    "optim/LR (group 0)": "lr",
    "optim/total grad norm": "grad_norm",
}


class Diverged(ValueError):
    """The loss, or a weight, is no longer a number."""


@dataclass
class Recorder(Callback):
    """Appends metrics to a jsonl file, tells the progress and stops a run that diverged, naming the batch.

    It counts the run's seconds from its own making on; an attempt that goes on from a state adds to those that the state has.
    """

    path: Path
    steps: int
    report: Callable[[float, float, str], None]
    blame: Callable[[int, DataLoaderBase], str]  # step -> what its batch held
    peak_flops: float = 0.0  # of all ranks together; 0: not known, no MFU
    clock: Callable[[], float] = time.perf_counter
    _seconds_before: float = 0.0  # of the attempts before this one, up to the state that it goes on from
    _made: float = field(init=False)
    _since: tuple[float, int] = (0.0, 0)
    _losses: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    _began: bool = False

    def __post_init__(self) -> None:
        self._made = self.clock()

    @property
    def seconds(self) -> float:
        """Of all attempts; what one of them did after its last state is lost, and does not count."""
        return self._seconds_before + self.clock() - self._made

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict.get("seconds", 0.0)

    def pre_train(self) -> None:
        """Drop what an interrupted run wrote after the state that this one goes on from."""
        if get_rank() == 0:
            write_atomically(self.path, "".join(f"{line}\n" for line in lines_up_to(self.path, self.step)))
        self._since = (self.clock(), self.trainer.global_train_tokens_seen)

    def pre_optim_step(self) -> None:
        loss = self.trainer.get_metric(TRAIN_CE_LOSS_METRIC)
        if loss is not None:
            self._losses.append((self.step, loss.detach().clone()))

    def post_train_batch(self) -> None:
        if self.step % COLLECT_STEPS and self._began and self.step != self.steps:
            return
        self._began = True  # as OLMo-core's trainer collects its metrics: after the first step, then every so many, and the last
        if self.step == self.steps:
            self.check()  # these weights are the run's product, and no further step would tell
        else:
            self._check_losses()

    def post_step(self) -> None:
        if get_rank() == 0:
            self.report(self.trainer.global_train_tokens_seen, self.steps * self.trainer.global_batch_size, "tokens")

    def log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        if TRAIN_CE_LOSS_METRIC not in metrics or get_rank() != 0:
            return  # recorded before the first step of this process
        found = {**renamed(metrics), **validated(metrics)}
        if step % max(1, self.steps // LINES) and step != self.steps and len(found) == len(renamed(metrics)):
            return
        line = {"step": step, "tokens": step * self.trainer.global_batch_size, "time": time.time(), **found}
        line |= {**self._speed(), **system_metrics()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def check(self) -> None:
        """Diverged if a loss so far or a weight is no number. Every rank calls it, before weights are kept or measured."""
        self._check_losses()
        if not all_finite(self.trainer.train_module.model.parameters(), self.trainer.device):
            raise self._diverged(self.step, f"the weights after step {self.step} are no numbers")

    def _check_losses(self) -> None:
        bad = first_not_finite(self._losses, self.trainer.device)
        self._losses.clear()
        if bad is not None:
            raise self._diverged(bad, f"the loss of step {bad} is no number")

    def _diverged(self, step: int, what: str) -> Diverged:
        return Diverged(
            f"training diverged: {what}: lower training.lr or raise training.warmup_tokens, or look at its batch, "
            f"which held {self.blame(step, self.trainer.data_loader)}"
        )

    def _speed(self) -> dict[str, float]:
        """Tokens per second of this attempt so far, and the share of the peak that their FLOPs are."""
        started, tokens = self._since
        seen: int = self.trainer.global_train_tokens_seen
        speed = (seen - tokens) / max(self.clock() - started, 1e-9)
        if not self.peak_flops:
            return {"tokens_per_second": speed}
        flops = self.trainer.train_module.num_flops_per_token(self.trainer.train_module.max_sequence_length) or 0
        return {"tokens_per_second": speed, "mfu": flops * speed / self.peak_flops}


@dataclass
class TimedCheckpointer(CheckpointerCallback):
    """Keeps the last states to resume from: every so many minutes, and when the run is told to stop; each time only if `check` lets it."""

    save_interval: int | None = None
    pre_train_checkpoint: bool | None = False
    save_async: bool | None = False
    max_checkpoints: int | None = 1
    minutes: float = 20.0
    check: Callable[[], None] = lambda: None
    _last: float = 0.0

    def pre_train(self) -> None:
        super().pre_train()
        self._checkpoints = [path for _, path in sorted(self.checkpointer.find_checkpoints(self.save_folder))]  # of earlier attempts
        self._last = time.monotonic()

    def post_train_batch(self) -> None:
        if self._is_due():
            self._checkpoints.append(self._save_checkpoint())
            self._trim_checkpoints()
            self._remove_old_checkpoints()
            self._last = time.monotonic()

    def post_train(self) -> None:
        if self.trainer.is_canceled:
            super().post_train()
            self._remove_old_checkpoints()  # OLMo-core leaves it to the next step, which may be in no attempt: states would add up

    def _is_due(self) -> bool:
        """Rank 0's clock decides for all."""
        due = time.monotonic() - self._last >= 60 * self.minutes
        if get_world_size() == 1:
            return due
        if self.step % COLLECT_STEPS:
            return False
        return bool(broadcast_object(due))

    def _save_checkpoint(self, save_async: bool | None = None, ephemeral: bool = False) -> str:
        self.check()
        return str(super()._save_checkpoint(save_async, ephemeral))


@dataclass
class IntermediateKeeper(Callback):
    """Saves the weights after chosen steps."""

    priority: ClassVar[int] = 2  # before the checkpointer: a state that is kept after a step knows that its weights are
    steps: frozenset[int]
    save: Callable[[int], None]  # step -> nothing

    def post_train_batch(self) -> None:
        if self.step in self.steps:
            self.save(self.step)


@dataclass
class Stopper(Callback):
    """Cancels the run when the process that started its ranks asks for it."""

    asked: Callable[[], bool]

    def post_train_batch(self) -> None:
        if self.step % COLLECT_STEPS == 0 and get_rank() == 0 and self.asked():
            self.trainer.cancel_run(ASKED)


def first_not_finite(losses: Sequence[tuple[int, torch.Tensor]], device: torch.device) -> int | None:
    """The first of these steps whose loss is not finite on any rank."""
    values = [torch.isfinite(loss).all().to(device) for _, loss in losses]
    steps = [step for step, _ in losses]
    if not steps:
        return None
    finite = torch.stack(values).to(torch.int32)
    if is_distributed():
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    bad = (finite == 0).nonzero().flatten().tolist()
    return steps[bad[0]] if bad else None


def all_finite(tensors: Iterable[torch.Tensor], device: torch.device) -> bool:
    """Whether every number of these tensors is finite, in all ranks' shards."""
    finite = torch.stack([torch.isfinite(get_local_tensor(tensor.detach())).all() for tensor in tensors]).all().to(device, torch.int32)
    if is_distributed():
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    return bool(finite)


def validated(metrics: dict[str, float]) -> dict[str, float]:
    """Of OLMo-core's metrics those of held-out documents: `validation/CORPUS/loss` and `.../perplexity`."""
    return {name: value for name, value in metrics.items() if name.startswith(f"{VALIDATION}/")}


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
