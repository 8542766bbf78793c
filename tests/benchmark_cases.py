"""Small files of benchmarks in the forms that users may give, protocols on them, and a tokenizer with a chat template: for tests."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cpt_lab.evaluation.items import files_digest
from cpt_lab.evaluation.protocols import build_protocol
from cpt_lab.specs import ChatTask, Mean, OlmesTask, Protocol
from cpt_lab.specs.benchmarks import CHAT, OLMES
from cpt_lab.store import Workspace
from factory import tiny_tokenizer

LONG = "x" * 12
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {"question": f"What is {a} and {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b:,}"} for a, b in ((3, 4), (999, 1), (5, 1))
    ],
    "drop": [
        {"passage": "Tom has a dog. Ann has 2 cats.", "question": "Who has cats?", "answers": [["Ann"], ["Ann", "Tom"]], "answer": "Ann"},
        {"passage": "It was May 1.", "question": "Which day?", "answers": [["May 1"]], "answer": "May 1"},
    ],
    "arc_easy": [
        {"question": "Ice is", "choices": {"text": ["hot", "cold", LONG], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question": "A cat is", "choices": {"text": [LONG, "a tree"], "label": ["A", "B"]}, "answerKey": "A"},
    ],
    "hellaswag": [
        {
            "activity_label": "Cooking",
            "ctx_a": "A man cooks.",
            "ctx_b": "he",
            "endings": ["eats [step] it", "flies.", LONG, "sits."],
            "label": "0",
        },
        {"activity_label": "Art", "ctx_a": "How to draw [title] Sit.", "ctx_b": "", "endings": ["a", "bb", "ccc", "dd"], "label": "2"},
    ],
    "winogrande": [
        {"sentence": "Sarah asked Maria so _ said yes.", "option1": "Sarah", "option2": "Maria", "answer": "2"},
        {"sentence": "The cup fits the box as the _ is big.", "option1": "cup", "option2": "box", "answer": "2"},
    ],
    "math500": [{"problem": "What is half?", "solution": "It is $\\boxed{\\frac{1}{2}}$."}],
    "mmlu": [{"question": "What is 1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": "arithmetic"}],
    "gpqa": [{"Question": "Pick", "Correct Answer": "r", "Incorrect Answer 1": "x", "Incorrect Answer 2": "y", "Incorrect Answer 3": "z"}],
}
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_files(folder: Path) -> Path:
    """One file of rows per benchmark, and short solved examples where a task needs some."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        shots = [{"text": f"q{number} a"} for number in range(OLMES[name].shots if name in OLMES else 0)]
        (folder / f"{name}.shots.jsonl").write_text("".join(json.dumps(shot) + "\n" for shot in shots))
    return folder


def olmes_task(name: str, folder: Path, **settings: Any) -> OlmesTask:
    """The task on the files of a folder, pinned to them as the configuration does it."""
    return OlmesTask(name=name, source="files", folder=str(folder), data=files_digest("olmes", name, str(folder)), **settings)


def chat_task(name: str, folder: Path, **settings: Any) -> ChatTask:
    assert name in CHAT
    return ChatTask(name=name, source="files", folder=str(folder), data=files_digest("chat", name, str(folder)), **settings)


def benchmarks(*tasks: Any, means: tuple[Mean, ...] = (), primary: str | None = None) -> Protocol:
    return Protocol(name="case", tasks=tasks, means=means, primary=primary, harness=version("lm_eval"))


def build(spec: Protocol, root: Path) -> Path:
    """The protocol's product, built and renamed as the store does it."""
    work = Workspace(root / "protocol", root / "protocol" / ".product-1")
    work.product.mkdir(parents=True)
    build_protocol(spec, {}, work)
    return work.product.rename(root / "protocol" / "product")


def chat_tokenizer(template: str = TEMPLATE) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer
