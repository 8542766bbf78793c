"""`python -m analysis.bench_lifecycle [MODEL ...]`: one measurement of the spectra of a model beside one of its training steps.

By default the scales of the lifecycle experiments, where there is a GPU, else the smallest one with a small batch. A measurement is timed
where the weights are, and with the weights on the CPU and all of its cores.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from cpt_lab.execution import Execution
from cpt_lab.specs import ModelShape, Watch
from cpt_lab.spectra import PRESETS

SCALES = ("olmo2_d8", "olmo2_d12", "olmo2_d16")
WATCH = Watch(every=25, measures=PRESETS["lifecycle"])
BATCH, LENGTH = 128, 512  # of the experiments
AT_ONCE = 32  # sequences
REPEATS = 3
CONF = Path(__file__).parents[1] / "conf" / "model"


def main(models: tuple[str, ...] = ()) -> None:
    """Print the seconds of both, and every how many steps a measurement then takes its share of the time."""
    device = Execution().on_device()
    cores = len(os.sched_getaffinity(0))
    for name in models or (SCALES if device == "cuda" else SCALES[:1]):
        shape = ModelShape(name=name, **yaml.safe_load((CONF / f"{name}.yaml").read_text())["shape"])
        sequences = BATCH if device == "cuda" else 1
        step, here, on_cpu = seconds(shape, device, sequences, cores)
        share = Execution().spectra_share
        needed = {place: took * (1 - share) / share / step for place, took in (("there", here), (f"by {cores} cores", on_cpu))}
        words = ", ".join(f"every {steps:.0f} steps {place}" for place, steps in needed.items())
        print(
            f"{name} on {device}: step of {sequences} x {LENGTH} tokens {step:.3f} s, spectra {here:.2f} s there and {on_cpu:.2f} s by "
            f"{cores} cores: {100 * share:g} % of the time is {words}",
            flush=True,
        )


def seconds(shape: ModelShape, device: str, sequences: int, cores: int) -> tuple[float, float, float]:
    """Medians of a step, of a measurement on the device, and of one on the CPU."""
    from cpt_lab.training import engine
    from cpt_lab.training.spectra_callback import measured

    model: Any = engine.model_config(shape, seed=0).build(init_device="cpu").to(device)
    took = timed(lambda: step_of(model, shape, sequences), device)
    here = timed(lambda: measured(model, shape, WATCH, threads=cores), device)
    model = model.to("cpu")
    return took, here, timed(lambda: measured(model, shape, WATCH, threads=cores), "cpu")


def step_of(model: Any, shape: ModelShape, sequences: int) -> None:
    """Forward and backward of a batch, AT_ONCE sequences at a time, in bf16."""
    device = next(model.parameters()).device
    for start in range(0, sequences, AT_ONCE):
        tokens = torch.randint(shape.vocab_size, (min(AT_ONCE, sequences - start), LENGTH + 1), device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)
    model.zero_grad()


def timed(work: Callable[[], object], device: str) -> float:
    """The median of a few times after one that warms up."""
    found = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
