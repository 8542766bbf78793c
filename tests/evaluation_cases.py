"""A tiny model that has learnt four sums by heart, corpora that ask for them, and protocols on these: for the tests of evaluation."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cpt_lab.evaluation.protocols import build_protocol
from cpt_lab.specs import BuiltinCorpus, GenerateTask, PerplexityTask, Protocol, key
from cpt_lab.store import Workspace
from factory import tiny_model, tiny_shape, tiny_tokenizer

MATH = BuiltinCorpus(name="math", documents=8, held_out=6)
TEXT = BuiltinCorpus(name="text", documents=8, held_out=6)
SUMS = ((3, 4), (2, 6), (5, 1), (8, 9))
PROSE = (
    "The river runs past 3 mills and 14 houses before it meets the sea.",
    "[1, 2, 3]",
    "  Anna has 7 apples\n\nand gives 2 of them to Tom.  ",
    "x",
    "Grüße aus Köln — 42 Ämter!\u2028And a line that Python splits and JSON does not.",
)


def problem(first: int, second: int, result: int | None = None) -> dict[str, str]:
    """A sum as the math corpus words it; `result` to claim another one."""
    result = first + second if result is None else result
    question, answer = f"What is {first} and {second}?", f"{first} + {second} = {result}\n#### {result}"
    return {"question": question, "answer": answer, "text": f"Question: {question}\nAnswer: {answer}"}


def write_corpora(root: Path, *, test: list[dict[str, str]] | None = None) -> dict[str, Path]:
    """The product folders of both corpora. The test split asks the four learnt sums, the last with a gold answer that is wrong."""
    asked = test or [problem(*SUMS[0]), problem(*SUMS[1]), problem(*SUMS[2]), problem(*SUMS[3], result=18)]
    prose = [{"text": text} for text in PROSE]
    contents = {key(MATH): ([problem(1, 1), problem(2, 2)], asked), key(TEXT): (prose, prose)}
    for name, (train, held_out) in contents.items():
        (root / name).mkdir(parents=True)
        for split, documents in (("train", train), ("validation", held_out), ("test", held_out)):
            (root / name / f"{split}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    return {name: root / name for name in contents}


def sums_task(*, items: int = 4, shots: int = 0, max_new_tokens: int = 24) -> GenerateTask:
    return GenerateTask(name="sums", corpus=MATH, items=items, shots=shots, max_new_tokens=max_new_tokens)


def prose_task() -> PerplexityTask:
    return PerplexityTask(name="prose", corpus=TEXT, items=len(PROSE))


def protocol(*tasks: Any) -> Protocol:
    """A protocol of these tasks; without any, of the sums and the prose."""
    return Protocol(name="case", tasks=tasks or (sums_task(), prose_task()), harness=version("lm_eval"))


def build(spec: Protocol, root: Path, **corpora: Any) -> Path:
    """The protocol's product, built and renamed as the store does it."""
    work = Workspace(root / "protocol", root / "protocol" / ".product-1")
    work.product.mkdir(parents=True)
    build_protocol(spec, write_corpora(root / "corpora", **corpora), work)
    return work.product.rename(root / "protocol" / "product")


def taught_model(steps: int = 120) -> tuple[Any, Any]:
    """A model that answers the four sums, and its tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_shape()).train()
    texts = [problem(*numbers)["text"] + tokenizer.eos_token for numbers in SUMS]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], labels=labels).loss.backward()
        optimizer.step()
    return model.eval(), tokenizer
