"""One training run, from scratch or from a checkpoint, ending in a checkpoint folder in Hugging Face format."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab import disk
from cpt_lab.training import checks, mixing, ranks, saving

if TYPE_CHECKING:
    from olmo_core.data import NumpyDataLoaderBase
    from olmo_core.train import Trainer
    from olmo_core.train.callbacks import Callback
    from olmo_core.train.train_module import TransformerTrainModule

    from cpt_lab.execution import Execution
    from cpt_lab.specs import TrainedCheckpoint
    from cpt_lab.store import Workspace
    from cpt_lab.training.mixing import Mixed

MIXED = "mixture.npy"  # of the scratch folder


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
    there. ValueError for a budget that a source cannot fill, shapes that do not fit, or a loss that is not finite; OSError (ENOSPC) if
    the disk is too small; InterruptedError after a signal.
    """
    work.scratch.mkdir(parents=True, exist_ok=True)
    team = ranks.team(how)
    ranks.check(spec.recipe.batch_sequences, team.size)
    checks.check_tokenizer(inputs.start, inputs.tokenizer)
    check_room(spec, work, inputs=inputs, how=how)
    try:
        if team.size == 1:
            train_here(spec, work, inputs=inputs, how=how)
        else:
            mixing.mix(spec.mixture, inputs.tokens, work.scratch / MIXED, tokenizer=inputs.tokenizer)  # ranks wait half an hour at most
            told: dict[str, Any] = {"spec": spec.model_dump(mode="json"), "how": how.model_dump(mode="json"), "inputs": inputs.dumped()}
            told |= {"folder": str(work.folder), "product": str(work.product)}
            ranks.run(told, work.scratch, team, device=how.on_device(), threads=how.threads)
    except (RuntimeError, MemoryError) as error:
        from cpt_lab.training import engine

        micro_batch = engine.micro_batch(spec.shape, spec.recipe, ranks=team, device=how.on_device(), how=how)
        checks.explain_memory(error, spec.recipe, micro_batch=micro_batch)
        raise


def train_here(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution) -> None:
    """`train` in this process, the only one of the run or one of its ranks."""
    from olmo_core.distributed.utils import get_rank

    from cpt_lab.training import engine, spectra_callback
    from cpt_lab.training.callbacks import Recorder

    began, device = time.perf_counter(), how.on_device()
    mixed = first_alone(lambda: mixing.mix(spec.mixture, inputs.tokens, work.scratch / MIXED, tokenizer=inputs.tokenizer))
    checks.check_vocabulary(mixed.vocab_size, spec.shape)
    with threads(how.threads), no_progress_bars():
        module = engine.build_train_module(spec.shape, spec.recipe, start=inputs.start, device=device, how=how, scratch=work.scratch)
        group = module.dp_process_group
        loader = engine.build_loader(mixed, spec.recipe, scratch=work.scratch, device=device, dp_group=group)
        callbacks = watchers(spec, work, inputs=inputs, how=how, module=module, loader=loader)
        last = None if inputs.until is None else inputs.until // spec.recipe.batch_tokens
        trainer = engine.build_trainer(module, loader, scratch=work.scratch, device=device, callbacks=callbacks, last_step=last)
        fit(trainer)
        if last is not None:
            return
        saving.save_checkpoint(module.model, spec.shape, tokenizer=inputs.tokenizer, folder=work.product)
    if get_rank() == 0:
        saving.publish_intermediates(work.scratch, work.product)
        spectra_callback.collect(work.scratch / "spectra", work.product)
        shutil.copyfile(work.scratch / "metrics.jsonl", work.product / "metrics.jsonl")
        tokens = spec.steps * spec.recipe.batch_tokens
        recorder = callbacks["recorder"]
        assert isinstance(recorder, Recorder)
        facts = summary(time.perf_counter() - began, spec.steps, tokens=tokens, resumed_at=recorder.resumed_at, epochs=mixed.epochs)
        (work.product / "training.json").write_text(json.dumps(facts, indent=1))


def check_room(spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution) -> None:
    """OSError if the disk has no room for the mixed tokens, states and weights still to come: what an earlier attempt left is there."""
    steps = disk.kept_steps(spec, how, inputs.keep)
    kept = sum((work.scratch / saving.INTERMEDIATES / str(step * spec.recipe.batch_tokens)).is_dir() for step in steps)
    there = len([*(work.scratch / "states").glob("step*/.metadata.json")])
    states = max(how.keep_states + 1 - there, 0)  # a new one is whole before the oldest goes
    folders = len(steps) - kept + (inputs.until is None)
    mixed = mixing.missing_bytes(spec.mixture, inputs.tokens, work.scratch / MIXED)
    checks.check_room(work.scratch, spec.shape, states=states, folders=folders, mixed=mixed)


def watchers(
    spec: TrainedCheckpoint, work: Workspace, *, inputs: Inputs, how: Execution, module: TransformerTrainModule, loader: NumpyDataLoaderBase
) -> dict[str, Callback]:
    """What happens beside the steps of a run: metrics, validation, states, weights on the way, spectra, the wish to stop."""
    from cpt_lab.training.callbacks import IntermediateKeeper, Recorder, Stopper, TimedCheckpointer
    from cpt_lab.training.spectra_callback import SpectraCallback
    from cpt_lab.training.validation import Validator, held_out, steps_of

    recipe, shape, model = spec.recipe, spec.shape, module.model

    def blame(step: int) -> str:
        length, each = recipe.sequence_length, recipe.batch_sequences
        sequences = loader.get_global_indices()[(step - 1) * each : step * each].tolist()
        named = mixing.documents_of(spec.mixture, inputs.tokens, sequences, tokenizer=inputs.tokenizer, length=length)
        return checks.words(named, work.scratch / "diverged.json")

    def save(step: int) -> None:
        checks.check_room(work.scratch, shape, folders=1)
        tokens = step * recipe.batch_tokens
        saving.save_intermediate(model, shape, tokenizer=inputs.tokenizer, scratch=work.scratch, tokens=tokens)

    metrics, peak = work.scratch / "metrics.jsonl", checks.peak_flops(recipe, device=how.on_device())
    found: dict[str, Callback] = {
        "recorder": Recorder(path=metrics, steps=spec.steps, report=work.progress, blame=blame, peak_flops=peak),
        "checkpointer": TimedCheckpointer(
            minutes=how.checkpoint_minutes,
            max_checkpoints=how.keep_states,
            check_room=lambda: checks.check_room(work.scratch, shape, states=1),
        ),
        "stopper": Stopper(asked=lambda: ranks.asked_to_stop(work.scratch)),
    }
    if keep := disk.kept_steps(spec, how, inputs.keep):
        found["keeper"] = IntermediateKeeper(steps=keep, save=save)
    if how.validations and (domains := held_out(inputs.held_out, tokenizer=inputs.tokenizer, length=recipe.sequence_length)):
        found["validator"] = Validator(domains=domains, steps=steps_of(how.validations, spec.steps))
    if spec.watch is not None:
        found["spectra"] = SpectraCallback(
            folder=work.scratch / "spectra",
            shape=shape,
            watch=spec.watch,
            steps=spec.steps,
            share=how.spectra_share,
            threads=how.threads,
        )
    return found


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
    """Run the trainer. A SIGINT, SIGTERM or SIGUSR2 saves its state, stops it, and then reaches the caller's own handler.

    InterruptedError if it was stopped and that handler came back.
    """
    with usr2_cancels(trainer), saving.alone():
        trainer.fit()
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


def summary(seconds: float, steps: int, *, tokens: int, resumed_at: int, epochs: dict[str, float]) -> dict[str, Any]:
    """The run in numbers; seconds and tokens per second of its last attempt, of all ranks together, loading and saving included."""
    from olmo_core.distributed.utils import get_world_size

    speed = (tokens - resumed_at) / seconds
    return {"seconds": seconds, "steps": steps, "tokens": tokens, "tokens_per_second": speed, "ranks": get_world_size(), "epochs": epochs}


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
