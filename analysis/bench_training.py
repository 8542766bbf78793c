"""Our training run against OLMo-core's own script: one model, one token file, one thread, in turn, each in a process of its own.

Tokens per second are those between the fifth step and the last; start-up is from the start of the process to the end of the first step.
Ratios travel between machines, seconds do not.
"""

from __future__ import annotations

import json
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

ROUNDS, STEPS, FIRST = 3, 30, 5
SIZES = {"hidden": 256, "layers": 4, "heads": 8, "vocab_size": 4096, "length": 128, "batch": 8}
MLP = 1024  # which OLMo-core makes of this hidden size
DOCUMENT = 64  # tokens


def main() -> None:
    """Print both speeds and start-ups of every round, and the medians of their ratios and differences."""
    ratios, waits = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_inputs(folder)
        for number in range(ROUNDS):
            theirs = _timed(
                folder, "analysis.plain_training", f"plain-{number}.json", str(folder / "sizes.json"), str(folder / f"plain-{number}")
            )
            ours = _timed(folder, "analysis.bench_training", f"ours-{number}.json", str(folder), str(number))
            ratios.append(ours[0] / theirs[0])
            waits.append(ours[1] - theirs[1])
            print(
                f"round {number + 1}: ours {ours[0]:,.0f} tokens/s, first step after {ours[1]:.1f} s; "
                f"OLMo-core alone {theirs[0]:,.0f}, {theirs[1]:.1f} s",
                flush=True,
            )
    print(
        f"training: {100 * statistics.median(ratios):.1f} % of OLMo-core's own tokens per second, start-up "
        f"{statistics.median(waits):+.1f} s (medians of {ROUNDS})"
    )


def ours(folder: Path, number: str) -> None:
    """Train as a worker does, and write when each step that is a multiple of five ended."""
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
        mixture=Mixture(name="bench", parts=(Part(corpus=corpus, tokens=STEPS * length * batch),)),
        recipe=recipe,
    )
    place = folder / f"run-{number}"
    (place / "product").mkdir(parents=True)
    inputs = Inputs((folder / "tokens",), folder / "tokenizer")
    train(spec, Workspace(place, place / "product"), inputs=inputs, how=Execution(device="cpu", threads=1))
    lines = [json.loads(line) for line in (place / "product" / "metrics.jsonl").read_text().splitlines()]
    (folder / f"ours-{number}.json").write_text(json.dumps([line["time"] for line in lines]))


def _timed(folder: Path, module: str, file: str, *arguments: str) -> tuple[float, float]:
    """(tokens per second, seconds to the end of the first step) of a training in a process of its own."""
    began = time.time()
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ended = json.loads((folder / file).read_text())
    assert len(ended) == STEPS
    tokens = (STEPS - FIRST) * SIZES["length"] * SIZES["batch"]
    return tokens / (ended[-1] - ended[FIRST - 1]), ended[0] - began


def _write_inputs(folder: Path) -> None:
    """Random documents as a token file, and a tokenizer of that many tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<end>": 0, **{f"w{number}": number for number in range(1, SIZES["vocab_size"])}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder / "tokenizer")
    ids = np.random.default_rng(0).integers(1, SIZES["vocab_size"], STEPS * SIZES["length"] * SIZES["batch"]).astype(np.uint16)
    ids[DOCUMENT - 1 :: DOCUMENT] = 0
    (folder / "tokens").mkdir()
    (folder / "tokens" / FILE).write_bytes(ids.tobytes())
    facts = {"documents": len(ids) // DOCUMENT, "tokens": len(ids), "dtype": "uint16", "vocab_size": SIZES["vocab_size"], "eos": 0}
    digests = {"sha256": file_digest(folder / "tokens" / FILE), "tokenizer_sha256": file_digest(folder / "tokenizer" / "tokenizer.json")}
    (folder / "tokens" / "manifest.json").write_text(json.dumps(facts | digests))
    (folder / "sizes.json").write_text(json.dumps({**SIZES, "tokens": str(folder / "tokens" / FILE)}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ours(Path(sys.argv[1]), sys.argv[2])
    else:
        main()
