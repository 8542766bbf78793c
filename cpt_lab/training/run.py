"""One training run, from scratch or from a checkpoint, ending in a checkpoint folder in Hugging Face format."""

from __future__ import annotations

import json
import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.store import write_atomically

if TYPE_CHECKING:
    from olmo_core.nn.transformer import Transformer
    from olmo_core.train import Trainer

    from cpt_lab.execution import Execution
    from cpt_lab.specs import ModelShape, TrainedCheckpoint
    from cpt_lab.store import Workspace


def train(spec: TrainedCheckpoint, work: Workspace, *, tokens: list[Path], tokenizer: Path, start: Path | None, how: Execution) -> None:
    """Write a Hugging Face checkpoint (weights, config, generation config, tokenizer), metrics.jsonl and training.json.

    `tokens` are the token files of the mixture's parts in order, `start` the checkpoint folder of `spec.start`; the optimiser starts
    fresh (P is silent on its state). The state is kept in the scratch folder every `how.checkpoint_minutes`, and an interrupted run goes
    on from there. ValueError for a budget that a source cannot fill, shapes that do not fit, or a loss that is not finite;
    InterruptedError after a signal.
    """
    from cpt_lab.training import engine, mixing
    from cpt_lab.training.callbacks import Recorder, TimedCheckpointer

    began = time.perf_counter()
    work.scratch.mkdir(parents=True, exist_ok=True)
    device = how.on_device()
    mixed = mixing.mix(spec.mixture, tokens, work.scratch / "mixture.npy", tokenizer=tokenizer)
    check_vocabulary(mixed.vocab_size, spec.shape)
    with threads(how.threads), no_progress_bars():
        module = engine.build_train_module(spec.shape, spec.recipe, start=start, device=device, how=how)
        loader = engine.build_loader(mixed, spec.recipe, scratch=work.scratch, device=device)
        steps = mixed.tokens // spec.recipe.batch_tokens
        callbacks = {
            "recorder": Recorder(path=work.scratch / "metrics.jsonl", steps=steps, report=work.progress),
            "checkpointer": TimedCheckpointer(minutes=how.checkpoint_minutes),
        }
        trainer = engine.build_trainer(module, loader, scratch=work.scratch, device=device, callbacks=callbacks)
        fit(trainer)
        save_checkpoint(module.model, spec.shape, tokenizer=tokenizer, folder=work.product)
    shutil.copyfile(work.scratch / "metrics.jsonl", work.product / "metrics.jsonl")
    facts = summary(time.perf_counter() - began, steps, tokens=steps * spec.recipe.batch_tokens, epochs=mixed.epochs)
    (work.product / "training.json").write_text(json.dumps(facts, indent=1))


def fit(trainer: Trainer) -> None:
    """Run the trainer. A SIGINT, SIGTERM or SIGUSR2 saves its state, stops it, and then reaches the caller's own handler.

    InterruptedError if it was stopped and that handler came back.
    """
    with usr2_cancels(trainer), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)  # one process is what we want
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


def save_checkpoint(model: Transformer, shape: ModelShape, *, tokenizer: Path, folder: Path) -> None:
    """Write the model and its tokenizer as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    from olmo_core.nn.hf.checkpoint import save_hf_model
    from transformers import AutoTokenizer

    save_hf_model(folder, model.state_dict(), model, AutoTokenizer.from_pretrained(tokenizer), save_overwrite=True)
    for file in tokenizer.iterdir():
        if file.name != "manifest.json":
            shutil.copyfile(file, folder / file.name)
    # OLMo-core writes no context length, and asks for sampling where every evaluation of ours is greedy unless it says otherwise.
    rewrite(folder / "config.json", max_position_embeddings=shape.context)
    rewrite(folder / "generation_config.json", do_sample=False)


def rewrite(path: Path, **fields: Any) -> None:
    """Set fields of a JSON object on disk."""
    write_atomically(path, json.dumps(json.loads(path.read_text()) | fields, indent=2, sort_keys=True) + "\n")


def summary(seconds: float, steps: int, *, tokens: int, epochs: dict[str, float]) -> dict[str, Any]:
    """The run in numbers; tokens per second over everything, loading and saving included."""
    return {"seconds": seconds, "steps": steps, "tokens": tokens, "tokens_per_second": tokens / seconds, "epochs": epochs}


def check_vocabulary(needed: int, shape: ModelShape) -> None:
    """ValueError if the tokenizer has more tokens than the model has rows."""
    if needed > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {needed} tokens, but model {shape.name} has {shape.vocab_size} embeddings: raise model.shape.vocab_size"
        )


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
