"""One training run, from scratch or from a checkpoint, ending in a checkpoint folder in Hugging Face format."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab import disk
from cpt_lab.store import read_json
from cpt_lab.training import checks, mixing, ranks, saving, watching

if TYPE_CHECKING:
    from olmo_core.train import Trainer

    from cpt_lab.execution import Execution
    from cpt_lab.specs import TrainedCheckpoint
    from cpt_lab.store import Workspace
    from cpt_lab.training.mixing import Mixed

MIXED = "mixture.npy"  # of the scratch folder
SUMMARY = "training.json"  # of the product


@dataclass(frozen=True)
class Inputs:
    """Where a run finds what it needs, and what it leaves beside its last weights."""

    tokens: tuple[Path, ...]  # token files of the mixture's parts, in order
    tokenizer: Path
    start: Path | None = None  # the checkpoint folder of the spec's start
    held_out: Mapping[str, Path] = field(default_factory=dict)  # corpus name -> its folder, for validation
    keep: tuple[int, ...] = ()  # tokens after which the weights are kept too
    until: int | None = None  # tokens after which the run ends, its schedule unchanged: only the weights of this place are wanted

    def dumped(self) -> dict[str, Any]:
        """As plain JSON values."""
        places = {name: str(path) for name, path in self.held_out.items()}
        start = None if self.start is None else str(self.start)
        paths = {"tokens": [*map(str, self.tokens)], "tokenizer": str(self.tokenizer), "start": start, "held_out": places}
        return {**paths, "keep": self.keep, "until": self.until}

    @classmethod
    def loaded(cls, told: Mapping[str, Any]) -> Inputs:
        """What `dumped` gave."""
        start = None if told["start"] is None else Path(told["start"])
        places = {name: Path(path) for name, path in told["held_out"].items()}
        return cls(tuple(map(Path, told["tokens"])), Path(told["tokenizer"]), start, places, tuple(told["keep"]), told["until"])


def train(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution) -> None:
    """Write a Hugging Face checkpoint (weights, config, generation config, tokenizer), metrics.jsonl and training.json.

    Weights that are kept on the way are folders of the same kind below `intermediates`; with `inputs.until` those are all there is. One
    process per GPU of the node, or of all nodes of a SLURM job. The optimiser starts fresh (P is silent on its state) unless `start` is
    OLMo-core's and has one. The state is kept in the scratch folder every `how.checkpoint_minutes`, and an interrupted run goes on from
    there. ValueError for a budget that a source cannot fill, shapes that do not fit, or a loss or weights that are not finite; OSError
    (ENOSPC) if the disk is too small; InterruptedError after a signal.
    """
    work.scratch.mkdir(parents=True, exist_ok=True)
    team = ranks.team(how)
    ranks.check(spec.recipe.batch_sequences, team.size)
    checks.check_tokenizer(inputs.start, inputs.tokenizer)
    try:
        if team.size == 1:
            shutil.rmtree(work.scratch / ranks.FOLDER, ignore_errors=True)  # its stop was meant for the ranks of an earlier attempt
            train_here(spec, work, inputs=inputs, how=how)
        else:
            check_room(spec, work, inputs=inputs, how=how)
            mixed(spec, work, inputs)  # here, for ranks wait half an hour at most
            told: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "how": how.model_dump(mode="json"), "inputs": inputs.dumped()}
            told |= {"folder": str(work.folder), "product": str(work.product)}
            ranks.run(told, work.scratch, team, device=how.on_device(), threads=how.threads)
    except (RuntimeError, MemoryError) as error:
        from cpt_lab.training import engine

        micro_batch = engine.micro_batch(spec.shape, spec.recipe, ranks=team, device=how.on_device(), how=how)
        checks.explain_memory(error, spec.recipe, micro_batch=micro_batch)
        raise
    if inputs.until is None:
        work.seconds = float(read_json(work.product / SUMMARY)["seconds"])


def train_here(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution) -> None:
    """`train` in this process, the only one of the run or one of its ranks."""
    from olmo_core.distributed.utils import get_rank

    from cpt_lab.training import engine, spectra_callback

    recorder, device = watching.recorder(spec, work, inputs=inputs, how=how), how.on_device()
    ranks.on_first(lambda: check_room(spec, work, inputs=inputs, how=how))
    made = first_alone(lambda: mixed(spec, work, inputs))
    checks.check_vocabulary(made.vocab_size, spec.shape)
    with threads(how.threads), no_progress_bars():
        module = engine.build_train_module(spec.shape, spec.recipe, start=inputs.start, device=device, how=how, scratch=work.scratch)
        with checks.memory_for("the order of the mixture's sequences"):
            loader = engine.build_loader(made, spec.recipe, scratch=work.scratch, device=device, dp_group=module.dp_process_group)
        callbacks = watching.watchers(spec, work, inputs=inputs, how=how, model=module.model, recorder=recorder)
        last = None if inputs.until is None else inputs.until // spec.recipe.batch_tokens
        trainer = engine.build_trainer(module, loader, scratch=work.scratch, device=device, callbacks=callbacks, last_step=last)
        fit(trainer)
        if last is not None:
            return
        with checks.memory_for("the weights while they are written"):
            saving.save_checkpoint(module.model, spec.shape, tokenizer=inputs.tokenizer, folder=work.product)
    if get_rank() == 0:
        saving.publish_intermediates(work.scratch, work.product)
        spectra_callback.collect(work.scratch / "spectra", work.product)
        shutil.copyfile(work.scratch / "metrics.jsonl", work.product / "metrics.jsonl")
        tokens = spec.steps * spec.recipe.batch_tokens
        facts = summary(recorder.seconds, spec.steps, tokens=tokens, epochs=made.epochs)
        (work.product / SUMMARY).write_text(json.dumps(facts, indent=1))


def mixed(spec: TrainedCheckpoint, work: Workspace, inputs: Inputs) -> Mixed:
    """The run's token file, made if it is not there whole."""
    with checks.memory_for("the token files of the mixture"):
        return mixing.mix(spec.mixture, inputs.tokens, work.scratch / MIXED, tokenizer=inputs.tokenizer)


def check_room(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution) -> None:
    """OSError if the disk has no room for the mixed tokens, states and weights still to come: what an earlier attempt left is there.

    What it left half written is of no use and is removed first.
    """
    mixing.unfinished(work.scratch / MIXED).unlink(missing_ok=True)
    for cut_off in (work.scratch / "states").glob("step*-tmp"):
        shutil.rmtree(cut_off, ignore_errors=True)
    steps = disk.kept_steps(spec, how, inputs.keep, until=inputs.until)
    kept = sum((work.scratch / saving.INTERMEDIATES / str(step * spec.recipe.batch_tokens)).is_dir() for step in steps)
    there = len([*(work.scratch / "states").glob("step*/.metadata.json")])
    states = max(how.keep_states + 1 - there, 0)  # a new one is whole before the oldest goes
    folders = len(steps) - kept + (inputs.until is None)
    missing = mixing.missing_bytes(spec.mixture, inputs.tokens, work.scratch / MIXED)
    checks.check_room(work.scratch, spec.shape, states=states, folders=folders, mixed=missing)


def first_alone(work: Callable[[], Mixed]) -> Mixed:
    """Do it on rank 0, then on the others, who find it done."""
    from olmo_core.distributed.utils import barrier, get_rank

    if get_rank() != 0:
        barrier()
    made = work()
    if get_rank() == 0:
        barrier()
    return made


def fit(trainer: Trainer) -> None:
    """Run the trainer. A SIGINT, SIGTERM or SIGUSR2 saves its state, stops it, and reaches the caller's own handler, even if saving failed.

    InterruptedError if it was stopped and that handler came back.
    """
    from olmo_core.distributed.utils import get_world_size

    try:
        with usr2_cancels(trainer), saving.alone():
            trainer.fit()
    except BaseException:
        if trainer._cancel_reason is not None and get_world_size() == 1:  # ranks get no signal that is not their starter's to obey
            signal.raise_signal(signal.Signals[trainer._cancel_reason.split()[0]])
        raise
    if trainer.is_canceled:
        reason = str(trainer._cancel_reason)
        signal.raise_signal(signal.Signals[reason.split()[0]])
        raise InterruptedError(f"training was interrupted at step {trainer.global_step} ({reason}): the same command goes on from there")


@contextmanager
def usr2_cancels(trainer: Trainer) -> Iterator[None]:
    """Inside the block SIGUSR2, SLURM's warning before the time limit, stops the trainer as its own handlers do for SIGINT and SIGTERM."""
    before = signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, lambda *_: trainer.cancel_run("SIGUSR2 received"))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR2, before)


def summary(seconds: float, steps: int, *, tokens: int, epochs: dict[str, float]) -> dict[str, Any]:
    """The run in numbers, of all its attempts; tokens per second over everything, of all ranks, loading and saving included."""
    from olmo_core.distributed.utils import get_world_size

    facts = {"seconds": seconds, "steps": steps, "tokens": tokens, "tokens_per_second": tokens / seconds}
    return {**facts, "ranks": get_world_size(), "epochs": epochs}


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many CPU threads for torch inside the block, as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers draws none of its own inside the block: progress is told once, by the workspace."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
