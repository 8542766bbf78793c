"""Requests, models and both model sides for tests of the fast one."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from cpt_lab.evaluation.sides import Sides
from cpt_lab.evaluation.tasks import LoadedTask, quiet_harness
from cpt_lab.execution import Execution
from cpt_lab.specs import ModelShape
from factory import tiny_model

SHOTS = "Question: what is 2 + 2? Answer: 4\n\nQuestion: what is 12 + 30? Answer: 42\n\n"
QUESTIONS = ("Anna has 7 apples. How many?", "what is 3 + 4?", "The river runs past 14 houses and 3 mills before it meets", "x?")
CHOICES = ((" the sea", " 7", " Anna and Tom"), (" 7", " 8"), (" it", " the sea.", " houses", " Tom"), (" y",))
TEXTS = ("", "x", "The river runs past 3 mills and 14 houses before it meets the sea. " * 5, "Grüße aus Köln")
WRITING = {"until": ["Question:", "\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 12}


def task(kind: str, arguments: list[tuple[Any, ...]], repeats: int = 1) -> LoadedTask:
    """A task of these requests, and of nothing that the model side does not need."""
    requests = [Instance(kind, {}, each, place, (kind, place, repeats)) for place, each in enumerate(arguments)]
    return LoadedTask(kind, None, tuple(requests), (), ())  # type: ignore[arg-type]


def written(**settings: Any) -> LoadedTask:
    prompts = [f"{SHOTS}Question: {question} Answer:" for question in QUESTIONS]
    return task("generate_until", [(prompt, {**WRITING, **settings}) for prompt in prompts])


def chosen() -> LoadedTask:
    prompts = zip(QUESTIONS, CHOICES, strict=True)
    return task("loglikelihood", [(f"{SHOTS}Question: {question} Answer:", choice) for question, choices in prompts for choice in choices])


def read() -> LoadedTask:
    return task("loglikelihood_rolling", [(text,) for text in TEXTS])


def sides(tasks: list[LoadedTask], model: Any, tokenizer: Any, **how: Any) -> Sides:
    with quiet_harness():
        return Sides(tasks, model, tokenizer, how=Execution(**{"eval_batch": 3, **how}), seed=0)


def outputs(side: Sides, tasks: list[LoadedTask], model: Any) -> list[list[Any]]:
    with quiet_harness():
        side.begin(model, lambda _: None)
        return [side.outputs(each) for each in tasks]


def assert_equal(fast: list[list[Any]], reference: list[list[Any]]) -> None:
    """Texts and hits are the same, log-likelihoods to 1e-5, or where they are large to what float32 holds: the harness sums in it."""
    answers, choices, texts = zip(fast, reference, strict=True)
    assert answers[0] == answers[1]
    assert [hit for _, hit in choices[0]] == [hit for _, hit in choices[1]]
    assert [value for value, _ in choices[0]] == pytest.approx([value for value, _ in choices[1]], abs=1e-5, rel=2e-7)
    assert texts[0] == pytest.approx(texts[1], abs=1e-5, rel=1e-6)


def model_of(shape: ModelShape, seed: int = 0) -> Any:
    """A tiny model with a context for the shots; its attention as transformers defines it for the family, soft caps included."""
    model = tiny_model(shape.but(context=256), seed=seed)
    model.set_attn_implementation("eager")
    return model
