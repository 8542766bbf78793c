"""Spectra of a model while it trains (L algorithm 2): every so many steps the measures of each matrix, and of heads on request.

A measured step is a file of rows in the scratch folder, so that a run that goes on finds what it has. OLMo-core's callbacks are a base
class, so this module needs it at import: import it where training starts.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from olmo_core.distributed.utils import all_gather_object, broadcast_object, get_full_tensor, get_rank, get_world_size
from olmo_core.train.callbacks import Callback
from torch import Tensor

from cpt_lab.architecture import ATTENTION_ROLES, Role, roles
from cpt_lab.specs import ModelShape, Scope, Watch
from cpt_lab.spectra import FAMILY_OF, decompose
from cpt_lab.spectra.blocks import heads_in
from cpt_lab.spectra.columns import PLACE
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.measures import Spectrum
from cpt_lab.training.pace import Pace

SPECTRA = "spectra.parquet"  # of the product
PARAMETERS: dict[Role, str] = {  # of a layer, as OLMo-core calls them
    **{"q": "attention.w_q", "k": "attention.w_k", "v": "attention.w_v", "o": "attention.w_out"},
    **{"gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2"},
}
WRITE_TO_RESIDUAL = ("o", "down")  # their rows are of the residual stream; of the others' the columns are
WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")  # what activation checkpointing and torch.compile put into names
MOST_ELEMENTS = 2**27  # that a rank holds at a time, half a GB in float32

log = logging.getLogger(__name__)
Place = tuple[int, Role]


class Block(NamedTuple):
    """A matrix, or a head's share of one, and its place in the table."""

    layer: int
    role: Role
    head: int
    values: Tensor  # (residual, head)


@dataclass
class SpectraCallback(Callback):
    """Measures before the first step, every `pace.interval` steps and after the last one."""

    priority: ClassVar[int] = 2  # before the checkpointer: a state that is kept after a step knows that it was measured
    folder: Path  # for a file of rows per measured step
    shape: ModelShape
    watch: Watch
    steps: int
    share: float  # of the run's time
    threads: int = 1
    check: Callable[[], None] = lambda: None  # raises what there is to say of weights that cannot be measured
    clock: Callable[[], float] = time.perf_counter
    pace: Pace = field(init=False)
    _since: float | None = None

    def __post_init__(self) -> None:
        self.pace = Pace(self.watch.every, self.share)

    def state_dict(self) -> dict[str, Any]:
        return self.pace.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pace.restore(state_dict)

    def pre_train(self) -> None:
        """Drop the rows of steps after the state that this attempt goes on from; measure the weights that a run begins with."""
        self.pace = broadcast_object(self.pace)
        if get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file in (*self.folder.glob("*.parquet"), *self.folder.glob(".*")):
                if file.name.startswith(".") or int(file.stem) > self.step:
                    file.unlink()
        if self.step == 0:
            self._measure()

    def post_train_batch(self) -> None:
        due = self.step % self.pace.interval == 0 or self.step == self.steps
        if due and torch.cuda.is_available():
            torch.cuda.synchronize()  # what the device still has to do is training
        now = self.clock()
        if self._since is not None:  # the first step of an attempt compiles
            self.pace.count_step(now - self._since)
        if due:
            self.check()
            self._measure()
        self._since = self.clock()

    def post_train(self) -> None:
        log.info("spectra took %.2f %% of the time of training and measuring", 100 * self.pace.spent)

    def _measure(self) -> None:
        began, before = self.clock(), self.pace.interval
        with _may_wait():
            rows = measured(self.trainer.train_module.model, self.shape, self.watch, threads=self.threads)
        if rows is not None:
            write_rows(rows, self.folder, step=self.step, tokens=self.step * self.trainer.global_batch_size)
        self.pace.count_measurement(self.clock() - began)
        self.pace.interval = broadcast_object(self.pace.interval)  # the clocks of ranks differ
        if self.pace.interval != before:
            log.warning(
                "spectra take %.2g s: from here on they are measured every %d steps; every %d are asked for, and may take %g %% of the "
                "run's time (execution.spectra_share)",
                *(self.pace.recent[-1], self.pace.interval, self.watch.every, 100 * self.share),
            )


# ----------------------------------------------------------------------------------------------------------------- files


def write_rows(rows: pd.DataFrame, folder: Path, *, step: int, tokens: int) -> None:
    """Write `<step>.parquet`, whole or not at all: the rows with their step and tokens before them."""
    timed = rows.copy(deep=False)
    timed.insert(0, "step", step)
    timed.insert(1, "tokens", tokens)
    beside = folder / f".{step}"
    timed.to_parquet(beside, index=False)
    os.replace(beside, folder / f"{step}.parquet")


def collect(folder: Path, product: Path) -> None:
    """Write spectra.parquet, the rows of all measured steps in order; nothing if no step was measured."""
    files = sorted(folder.glob("*.parquet"), key=lambda file: int(file.stem))
    if files:
        pd.concat([pd.read_parquet(file) for file in files], ignore_index=True).to_parquet(product / SPECTRA, index=False)


# -------------------------------------------------------------------------------------------------------------- one step


def measured(model: torch.nn.Module, shape: ModelShape, watch: Watch, *, threads: int = 1) -> pd.DataFrame | None:
    """A row per matrix, and on request per head before it, in the order of `spectra.tables`; None on all ranks but the first.

    Matrices are gathered where they are sharded, a few at a time, and dealt out: each rank decomposes its own.
    """
    places: list[Place] = [(layer, role) for layer in range(shape.num_layers) for role in roles(shape)]
    largest = shape.hidden_size * max(shape.mlp_size, shape.num_heads * shape.head_dim)
    at_once = get_world_size() * max(1, MOST_ELEMENTS // largest)
    parameters = {_plain(name): parameter for name, parameter in model.named_parameters()}
    rows: list[dict[str, Any]] = []
    for start in range(0, len(places), at_once):
        blocks = list(_gathered(parameters, shape, watch, places[start : start + at_once]))
        for size in dict.fromkeys(block.values.shape for block in blocks):
            rows += _rows([block for block in blocks if block.values.shape == size], watch.measures, threads)
    return _together(rows, places, watch.measures)


def _gathered(parameters: Mapping[str, Tensor], shape: ModelShape, watch: Watch, places: Sequence[Place]) -> Iterator[Block]:
    """This rank's blocks of the places. All ranks take part in gathering every matrix."""
    for turn, (layer, role) in enumerate(places):
        whole = get_full_tensor(parameters[f"blocks.{layer}.{PARAMETERS[role]}.weight"].detach())
        if turn % get_world_size() != get_rank():
            continue
        turned = whole if role in WRITE_TO_RESIDUAL else whole.mT
        for scope in _scopes(role, watch):
            heads = heads_in(scope, shape, role)
            for head, values in zip(heads, turned.chunk(len(heads), dim=1), strict=True):
                yield Block(layer, role, head, values)


def _scopes(role: Role, watch: Watch) -> tuple[Scope, ...]:
    if role not in ATTENTION_ROLES:
        return ("mlp",)
    return ("heads", "attention") if watch.heads else ("attention",)


def _rows(blocks: Sequence[Block], measures: Sequence[str], threads: int) -> list[dict[str, Any]]:
    """The rows of blocks of one size."""
    spectrum = _spectrum(torch.stack([block.values for block in blocks]), threads)
    columns: dict[str, list[float]] = {}
    for family in dict.fromkeys(FAMILY_OF[name] for name in measures):
        names = [name for name in measures if FAMILY_OF[name] == family]
        columns |= {name: found.tolist() for name, found in FAMILIES[family].columns(spectrum, names).items()}
    places = [dict(zip(PLACE, block[:3], strict=True)) for block in blocks]
    return [place | {name: columns[name][turn] for name in measures} for turn, place in enumerate(places)]


def _spectrum(matrices: Tensor, threads: int) -> Spectrum:
    """The spectra of matrices (b, residual, head); all that follows is on the CPU, where small vectors belong."""
    columns, rows = sorted(matrices.shape[1:])
    entries = [(block.double().mean(), block.double().std(correction=0)) for block in matrices]
    mean, std = (torch.stack(found).cpu() for found in zip(*entries, strict=True))
    values = decompose.values(matrices, threads=threads).cpu()
    return Spectrum(values=values, rows=rows, columns=columns, eps=torch.finfo(matrices.dtype).eps, std=std, mean=mean)


def _together(rows: list[dict[str, Any]], places: Sequence[Place], measures: Sequence[str]) -> pd.DataFrame | None:
    """The rows of all ranks in order, on the first one."""
    every = [row for part in all_gather_object(rows) for row in part] if get_world_size() > 1 else rows
    if get_rank() != 0:
        return None
    turn = {place: index for index, place in enumerate(places)}
    # a head's number, and the whole matrix, which has -1, after its heads
    every.sort(key=lambda row: (turn[row["layer"], row["role"]], row["head"] < 0, row["head"]))
    return pd.DataFrame(every, columns=[*PLACE, *measures])


def _plain(name: str) -> str:
    """A parameter's name without those of what is wrapped around its module."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@contextmanager
def _may_wait() -> Iterator[None]:
    """Inside the block nobody warns that the CPU waits for the device, as the trainer asks torch to."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
