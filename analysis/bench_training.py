"""Our training run against OLMo-core's own script: one model, one token file, one thread, in turn, each in a process of its own.

Seconds of a step by runs of two lengths, of start and end what is left; on the wall, which says something on an idle machine only, and of
a core. Ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cpt_lab.data.tokens import FILE, file_digest
from cpt_lab.execution import Execution
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, Mixture, ModelShape, Part, Recipe, TrainedCheckpoint
from cpt_lab.store import Workspace

ROUNDS, SHORT, LONG = 5, 5, 65  # runs of so many steps
CLOCKS = ("on the wall", "of a core")
SIZES = {"hidden": 256, "layers": 4, "heads": 8, "vocab_size": 4096, "length": 128, "batch": 8}
MLP = 1024  # which OLMo-core makes of this hidden size
DOCUMENT = 64  # tokens


def main() -> None:
    """Print what a step and a start take both ways in every round, and the medians of their ratios and differences, by both clocks."""
    ratios: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
    waits: dict[str, list[float]] = {clock: [] for clock in CLOCKS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        for number in range(ROUNDS):
            theirs, ours = {}, {}
            for steps in (SHORT, LONG):
                run = f"{number}-{steps}"
                theirs[steps] = _seconds("analysis.plain_training", str(folder / "sizes.json"), str(folder / f"plain-{run}"), str(steps))
                ours[steps] = _seconds("analysis.bench_training", str(folder), f"ours-{run}", str(steps))
            for index, clock in enumerate(CLOCKS):
                (their_step, their_start), (our_step, our_start) = _step_and_start(theirs, index), _step_and_start(ours, index)
                ratios[clock].append(their_step / our_step)
                waits[clock].append(our_start - their_start)
                print(
                    f"round {number + 1}, seconds {clock}: a step {our_step:.3f}, a start {our_start:.1f}; "
                    f"of OLMo-core alone {their_step:.3f} and {their_start:.1f}",
                    flush=True,
                )
    for clock in CLOCKS:
        low, middle, high = min(ratios[clock]), statistics.median(ratios[clock]), max(ratios[clock])
        print(
            f"training, seconds {clock}: {middle:.1%} of OLMo-core's own tokens per second ({low:.1%} to {high:.1%}), start-up and end "
            f"{statistics.median(waits[clock]):+.1f} s (medians of {ROUNDS})"
        )


def ours(folder: Path, run: str, steps: int) -> None:
    """Train as a worker does."""
    from cpt_lab.training.run import Inputs, train

    length, batch = SIZES["length"], SIZES["batch"]
    corpus = BuiltinCorpus(name="math", documents=1, held_out=1)
    shape = ModelShape(
        name="bench",
        family="olmo2",
        hidden_size=SIZES["hidden"],
        num_layers=SIZES["layers"],
        num_heads=SIZES["heads"],
        num_kv_heads=SIZES["heads"],
        head_dim=SIZES["hidden"] // SIZES["heads"],
        mlp_size=MLP,
        vocab_size=SIZES["vocab_size"],
        context=length,
    )
    recipe = Recipe(
        sequence_length=length,
        batch_sequences=batch,
        lr=1e-3,
        schedule="cosine",
        lr_final_share=0.1,
        warmup_tokens=2 * length * batch,
        precision="fp32",
    )
    spec = TrainedCheckpoint(
        shape=shape,
        tokenizer=BpeTokenizer(corpora=(corpus,), vocab_size=SIZES["vocab_size"]),
        mixture=Mixture(name="bench", parts=(Part(corpus=corpus, tokens=steps * length * batch),)),
        recipe=recipe,
    )
    place = folder / run
    (place / "product").mkdir(parents=True)
    inputs = Inputs((folder / "tokens",), folder / "tokenizer")
    train(spec, Workspace(place, place / "product"), inputs=inputs, how=Execution(device="cpu", threads=1))


def _seconds(module: str, *arguments: str) -> tuple[float, float]:
    """(on the wall, of a core) of a training in a process of its own."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waited, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return waited, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _step_and_start(seconds: dict[int, tuple[float, float]], clock: int) -> tuple[float, float]:
    """What one step takes, and everything else, by runs of two lengths."""
    step = (seconds[LONG][clock] - seconds[SHORT][clock]) / (LONG - SHORT)
    return step, seconds[SHORT][clock] - SHORT * step


def _write_inputs(folder: Path) -> None:
    """Random documents as a token file, and a tokenizer of that many tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, **{f"w{number}": number for number in range(1, SIZES["vocab_size"])}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder / "tokenizer")
    ids = np.random.default_rng(0).integers(1, SIZES["vocab_size"], LONG * SIZES["length"] * SIZES["batch"]).astype(np.uint16)
    ids[DOCUMENT - 1 :: DOCUMENT] = 0
    (folder / "tokens").mkdir()
    (folder / "tokens" / FILE).write_bytes(ids.tobytes())
    facts = {"documents": len(ids) // DOCUMENT, "tokens": len(ids), "dtype": "uint16", "vocab_size": SIZES["vocab_size"], "eos": 0}
    digests = {"sha256": file_digest(folder / "tokens" / FILE), "tokenizer_sha256": file_digest(folder / "tokenizer" / "tokenizer.json")}
    (folder / "tokens" / "manifest.json").write_text(json.dumps(facts | digests))
    (folder / "sizes.json").write_text(json.dumps({**SIZES, "tokens": str(folder / "tokens" / FILE)}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ours(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    else:
        main()
