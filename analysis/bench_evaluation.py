"""A sweep of edited points of a 4.7 million parameter OLMo 2, scored three ways in turn; all must say the same, or the bench fails.

20 questions of the form of GSM8K, their 800 shared prompt tokens before each and 64 new tokens after, and 24 cloze questions of four
choices behind five shots. The ways: the session's fast side on the live model; the harness's own model on the live model, with requests
that were built once; and, for some points, the checkpoint written out and the stock `lm_eval` command run on it. One thread each; ratios
travel between machines, seconds do not.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cpt_lab.data.builtin import build_corpus
from cpt_lab.data.documents import read_documents
from cpt_lab.data.tokenizer import build_tokenizer
from cpt_lab.evaluation.session import EvalSession, Scores
from cpt_lab.execution import Execution
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.patch import LiveModel, Patch
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, FolderCheckpoint, GenerateTask, Heads, ModelShape, Protocol
from cpt_lab.store import Workspace

POINTS, COMPARED, STOCK_POINTS = 10, 4, 2  # the slow ways do the same work at every point
QUESTIONS, SHARED_TOKENS, NEW_TOKENS = 20, 800, 64
CLOZE_QUESTIONS, CLOZE_SHOTS, CHOICES = 24, 5, 4
MATH = BuiltinCorpus(name="math", documents=400, held_out=100)
SHAPE = ModelShape(
    name="bench",
    family="olmo2",
    hidden_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=8,
    head_dim=32,
    mlp_size=1024,
    vocab_size=1024,
    context=2048,
)
BASE = FolderCheckpoint(path="base", weights_digest="base", shape=SHAPE)
SPEC = Protocol(
    name="bench",
    tasks=tuple(GenerateTask(name=name, corpus=MATH, items=1, max_new_tokens=NEW_TOKENS) for name in ("sums", "cloze")),
    harness=version("lm_eval"),
)
EQUAL = {"rel_tol": 1e-6, "abs_tol": 1e-9}


def main() -> None:
    """Print the processor's seconds per point for every way, and the ratios of medians."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = write_tasks(folder)
        model, live = random_model()
        fast = EvalSession(folder / "tasks", SPEC, tokenizer=tokenizer, how=Execution())
        reference = EvalSession(folder / "tasks", SPEC, tokenizer=tokenizer, how=Execution(mode="reference"))
        fast.score(model)  # plans, and keeps what the unedited model says of the frozen batches
        seconds: dict[str, list[float]] = {"fast": [], "harness": [], "command": []}
        for number, patch in enumerate(patches()):
            live.set(patch)
            ours, spent = timed(lambda: fast.score(model))
            seconds["fast"].append(spent)
            if number < COMPARED:
                theirs, spent = timed(lambda: reference.score(model))
                check_equal(ours, theirs)
                seconds["harness"].append(spent)
            if number < STOCK_POINTS:
                seconds["command"].append(command_line(model, tokenizer, folder, ours))
    medians = {way: statistics.median(some) for way, some in seconds.items()}
    print("CPU seconds per point: " + ", ".join(f"{way} {median:.2f}" for way, median in medians.items()))
    for way, what in (("harness", "the harness's own model on the live model"), ("command", "writing it out and one `lm_eval` process")):
        print(f"scoring a point of {POINTS}: {medians[way] / medians['fast']:.1f}x less time than {what}", flush=True)


def timed(work: Callable[[], Scores]) -> tuple[Scores, float]:
    """What the work gives, and the processor's seconds that it took: one thread on a shared machine waits for others, too."""
    started = time.process_time()
    scores = work()
    return scores, time.process_time() - started


def random_model() -> tuple[Any, LiveModel]:
    """A random model and its live edits, whose base is another random model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        SHAPE.family,
        hidden_size=SHAPE.hidden_size,
        num_hidden_layers=SHAPE.num_layers,
        num_attention_heads=SHAPE.num_heads,
        intermediate_size=SHAPE.mlp_size,
        vocab_size=SHAPE.vocab_size,
        max_position_embeddings=SHAPE.context,
        pad_token_id=1,
        eos_token_id=0,
        bos_token_id=None,
        initializer_range=0.05,
    )
    torch.manual_seed(0)
    model, base = (AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval() for _ in range(2))
    tuned, other = ({name: parameter.detach().clone() for name, parameter in one.named_parameters()} for one in (model, base))
    return model, LiveModel(model, tuned, {"base": other})


def patches() -> Iterator[Patch]:
    """Single heads rewound, in an order that does not know the layers."""
    order = torch.randperm(SHAPE.total_heads, generator=torch.Generator().manual_seed(0))[:POINTS]
    for head in order.tolist():
        yield Rewind(base=BASE, select=Heads(heads=(divmod(head, SHAPE.num_heads),))).patch(SHAPE)


def write_tasks(folder: Path) -> Any:
    """The files of both tasks in `tasks`, prompts written out; and the tokenizer."""
    from transformers import AutoTokenizer

    for name in ("math", "tokenizer", "tasks"):
        (folder / name).mkdir()
    build_corpus(MATH, Workspace(folder / "math", folder / "math"))
    build_tokenizer(BpeTokenizer(vocab_size=SHAPE.vocab_size, corpora=(MATH,)), [folder / "math"], Workspace(folder, folder / "tokenizer"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    train, test = ([dict(one) for one in read_documents(folder / "math", split)] for split in ("train", "test"))
    shots = ""
    for document in train:
        if len(tokenizer(shots)["input_ids"]) >= SHARED_TOKENS:
            break
        shots += document["text"] + "\n\n"
    sums = [{"prompt": f"{shots}Question: {one['question']}\nAnswer:", "answer": one["answer"]} for one in test[:QUESTIONS]]
    greedy = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0, "max_gen_toks": NEW_TOKENS}
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    _write_task(
        folder / "tasks",
        "sums",
        sums,
        {"output_type": "generate_until", "doc_to_target": "answer", "generation_kwargs": greedy, "metric_list": exact},
    )
    few = "".join(f"{document['text']}\n\n" for document in train[-CLOZE_SHOTS:])
    answers = [one["answer"] for one in test]
    cloze = [
        {"prompt": f"{few}Question: {one['question']}\nAnswer:", "choices": answers[place : place + CHOICES], "label": 0}
        for place, one in enumerate(islice(test, CLOZE_QUESTIONS))
    ]
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    _write_task(
        folder / "tasks",
        "cloze",
        cloze,
        {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label", "metric_list": metrics},
    )
    return tokenizer


def _write_task(folder: Path, name: str, documents: list[dict[str, Any]], form: dict[str, Any]) -> None:
    (folder / f"cpt_{name}").mkdir()
    file = folder / f"cpt_{name}" / "test.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
    task = {
        "task": f"cpt_{name}",
        "doc_to_text": "{{prompt}}",
        "num_fewshot": 0,
        **data,
        **form,
        "metadata": {"version": 1.0, "items": len(documents)},
    }
    (folder / f"cpt_{name}.yaml").write_text(json.dumps(task))


def command_line(model: Any, tokenizer: Any, folder: Path, scores: Scores) -> float:
    """Processor seconds to write the model out as it is now and score it by the stock command, which must say what `scores` say."""
    saved, out = folder / "saved", folder / "out"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={saved},dtype=float32"]
    command += ["--device", "cpu", "--batch_size", "64", "--tasks", "cpt_sums,cpt_cloze", "--include_path", str(folder / "tasks")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    before = _processor_seconds()
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    done = subprocess.run([*command, "--output_path", str(out)], env=environment, capture_output=True, text=True, check=False)
    seconds = _processor_seconds() - before
    if done.returncode:
        raise SystemExit(f"lm_eval failed:\n{done.stderr[-2000:]}")
    file = max(out.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    results = json.loads(file.read_text())["results"]
    for name, metric in scores.metrics.items():
        task, _, short = name.partition("/")
        if not math.isclose(results[f"cpt_{task}"][f"{short},none"], metric["value"], **EQUAL):
            raise SystemExit(f"{name}: {metric['value']} on the live model and {results[f'cpt_{task}']} by lm_eval")
    return seconds


def _processor_seconds() -> float:
    """Of this process and of all that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def check_equal(ours: Scores, theirs: Scores) -> None:
    """SystemExit if an answer or a metric differs."""
    if list(ours.samples["answer"]) != list(theirs.samples["answer"]):
        raise SystemExit("the fast side wrote other answers than the harness's own model")
    for name, metric in theirs.metrics.items():
        if not math.isclose(ours.metrics[name]["value"], metric["value"], **EQUAL):
            raise SystemExit(f"{name}: {ours.metrics[name]['value']} on the fast side and {metric['value']} by the harness's own model")


if __name__ == "__main__":
    main()
