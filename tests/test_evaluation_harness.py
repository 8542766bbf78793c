"""Tasks of the harness itself, with data of our own in the place of the hub's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cpt_lab.evaluation.session import EvalSession
from cpt_lab.evaluation.tasks import load_harness_tasks
from cpt_lab.execution import Execution
from cpt_lab.specs import HarnessTask
from evaluation_cases import SUMS, problem, protocol, taught_model

CHOICES = (("3 and 4", ["7", "14 mills", "a sea"], "A"), ("a river", ["an apple", "2", "water and houses"], "C"))


def data_of(path: str, **_: Any) -> Any:
    """What the hub would give for GSM8K and ARC."""
    from datasets import Dataset, DatasetDict

    if path == "openai/gsm8k":
        rows = [problem(*numbers) for numbers in SUMS]
        return DatasetDict({"train": Dataset.from_list(rows[:2]), "test": Dataset.from_list(rows)})
    rows = [
        {"question": question, "choices": {"text": texts, "label": ["A", "B", "C"]}, "answerKey": gold} for question, texts, gold in CHOICES
    ]
    return DatasetDict(dict.fromkeys(("train", "validation", "test"), Dataset.from_list(rows)))


@pytest.fixture(scope="module")
def manager() -> Any:
    """The harness's index of its thousands of task files, which it takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@pytest.fixture
def read_once(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)


@pytest.mark.slow
@pytest.mark.usefixtures("read_once")
def test_tasks_of_the_harness_keep_their_own_prompts_and_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", data_of)
    torch.set_num_threads(1)
    model, tokenizer = taught_model(steps=10)
    spec = protocol(HarnessTask(name="arc_easy"), HarnessTask(name="gsm8k", shots=1, limit=3))
    session = EvalSession(tmp_path, spec, tokenizer=tokenizer, how=Execution())
    with pytest.raises(ValueError, match=r"gsm8k: 3 of 3 prompts .* context of 128"):  # it lets the model write 256 tokens
        session.score(model)
    model.config.max_position_embeddings = 512  # rotary positions go on
    scores = session.score(model)

    assert {name: metric["n"] for name, metric in scores.metrics.items()} == {
        "arc_easy/acc": 2,
        "arc_easy/acc_norm": 2,
        "gsm8k/exact_match_strict": 3,
        "gsm8k/exact_match_flexible": 3,
    }
    assert scores.primary == "arc_easy/acc"
    expected = [float("ABC"[best_choice(model, tokenizer, question, texts)] == gold) for question, texts, gold in CHOICES]
    assert list(scores.samples["acc"][:2]) == expected


def best_choice(model: Any, tokenizer: Any, question: str, texts: list[str]) -> int:
    """The choice of the highest log-likelihood by one plain forward pass each."""
    sums = []
    for text in texts:
        prompt, whole = (
            tokenizer(part)["input_ids"] for part in (f"Question: {question}\nAnswer:", f"Question: {question}\nAnswer: {text}")
        )
        with torch.no_grad():
            logs = model(torch.tensor([whole[:-1]])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(whole) - 1)
        sums.append(sum(float(logs[place, whole[place + 1]]) for place in places))
    return max(range(len(sums)), key=sums.__getitem__)


@pytest.mark.slow
@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gsm8k_cott", KeyError, "no task 'gsm8k_cott'; near it are .*gsm8k_cot"),
        ("mmlu", KeyError, "'mmlu' is a group of the harness's tasks: name its tasks one by one, like mmlu_"),
        ("gsm8k", ValueError, "data of task gsm8k cannot be loaded .*run it once on a machine with a network"),
    ],
)
def test_a_harness_task_that_cannot_be_had_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, error: type[Exception], message: str
) -> None:
    import datasets

    def unreachable(**_: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(error, match=message):
        load_harness_tasks(protocol(HarnessTask(name=name, shots=8)))
