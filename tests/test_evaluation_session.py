"""Scores of live models: determinism under edits, parity with plain arithmetic, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.evaluation.scores import metric_name, write_scores
from cpt_lab.evaluation.scoring import score_outputs
from cpt_lab.evaluation.session import EvalSession, Scores
from cpt_lab.evaluation.tasks import load_tasks
from cpt_lab.execution import Execution
from evaluation_cases import PROSE, SUMS, build, prose_task, protocol, sums_task, taught_model


@pytest.fixture(scope="module")
def taught() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return taught_model()


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(protocol(), tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module")
def session(product: Path, taught: tuple[Any, Any]) -> EvalSession:
    return EvalSession(product, protocol(), tokenizer=taught[1], how=Execution())


def same(left: Scores, right: Scores) -> bool:
    """Whether two scores agree bit for bit, but for the time they took."""
    return left.metrics == right.metrics and left.samples.equals(right.samples) and left.warnings == right.warnings


def scaled(model: Any, factor: float) -> None:
    """Scale, in place, what the first head writes into the residual stream."""
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, :8] *= factor


def test_a_score_depends_on_the_weights_alone_and_not_on_what_was_scored_before(session: EvalSession, taught: tuple[Any, Any]) -> None:
    model, _ = taught
    first = session.score(model)
    scaled(model, 4.0)
    edited = session.score(model)
    scaled(model, 0.25)  # a power of two: undone to the bit
    again = session.score(model)
    assert same(first, again)
    assert not same(first, edited)


def test_a_fresh_session_gives_the_same_score(session: EvalSession, product: Path, taught: tuple[Any, Any]) -> None:
    model, tokenizer = taught
    fresh = EvalSession(product, protocol(), tokenizer=tokenizer, how=Execution())
    assert same(fresh.score(model), session.score(model))


def test_the_model_is_right_where_its_answer_is_the_gold_answer(session: EvalSession, taught: tuple[Any, Any]) -> None:
    scores = session.score(taught[0])
    sums = scores.samples[scores.samples["task"] == "sums"]
    assert list(sums["answer"]) == [f" {a} + {b} = {a + b}\n#### {a + b}" for a, b in SUMS]
    assert list(sums["exact_match_strict"]) == [1.0, 1.0, 1.0, 0.0]  # the last gold answer is wrong
    metric = scores.metrics["sums/exact_match_strict"]
    assert metric == {"value": 0.75, "stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 3)), "n": 4, "higher_is_better": True}
    assert scores.primary == "sums/exact_match_strict"
    assert scores.warnings == ()


@pytest.mark.parametrize("factor", [1.0, 4.0, -2.0])
def test_fast_scores_are_those_of_the_harness_after_every_edit(
    session: EvalSession, product: Path, taught: tuple[Any, Any], factor: float
) -> None:
    model, tokenizer = taught
    reference = EvalSession(product, protocol(), tokenizer=tokenizer, how=Execution(mode="reference"))
    scaled(model, factor)
    fast, slow = session.score(model), reference.score(model)
    scaled(model, 1 / factor)
    assert {answered["mode"] for answered in fast.answered.values()} == {"fast"}
    assert {answered["mode"] for answered in slow.answered.values()} == {"reference"}
    assert list(fast.samples["answer"][:4]) == list(slow.samples["answer"][:4])
    assert fast.metrics.keys() == slow.metrics.keys()
    for name, metric in slow.metrics.items():
        assert fast.metrics[name]["value"] == pytest.approx(metric["value"], rel=1e-6)


def test_answers_are_those_of_a_plain_greedy_loop(session: EvalSession, taught: tuple[Any, Any]) -> None:
    model, tokenizer = taught
    scaled(model, 8.0)
    scores = session.score(model)
    expected = [greedy(model, tokenizer, f"Question: What is {a} and {b}?\nAnswer:", limit=24) for a, b in SUMS]
    scaled(model, 0.125)
    assert list(scores.samples["answer"][:4]) == expected


def greedy(model: Any, tokenizer: Any, prompt: str, *, limit: int) -> str:
    """The answer by one full forward pass per token, alone and without a cache."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    while len(ids) < start + limit:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    text: str = tokenizer.decode(ids[start:], skip_special_tokens=True)
    return re.split(r"Question:|</s>|<\|im_end\|>", text)[0]


def test_perplexities_are_those_of_a_plain_forward_pass(session: EvalSession, taught: tuple[Any, Any]) -> None:
    model, tokenizer = taught
    scores = session.score(model)
    total = sum(log_likelihood(model, tokenizer, text) for text in PROSE)
    size = sum(len(text.encode()) for text in PROSE)
    words = sum(len(re.split(r"\s+", text)) for text in PROSE)
    metrics = {name: metric["value"] for name, metric in scores.metrics.items()}
    assert metrics["prose/bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-6)
    assert metrics["prose/byte_perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-6)
    assert metrics["prose/word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-5)


def log_likelihood(model: Any, tokenizer: Any, text: str) -> float:
    """Sum of log p of a text's tokens, the first after the end-of-text token."""
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    return float(logs[range(len(ids) - 1), ids[1:]].sum())


def test_a_head_of_zeros_finds_every_token_equally_likely_and_says_nothing(session: EvalSession, taught: tuple[Any, Any]) -> None:
    model, tokenizer = taught
    with head_of(model, 0.0):
        scores = session.score(model)
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in PROSE)
    size = sum(len(text.encode()) for text in PROSE)
    assert scores.metrics["prose/bits_per_byte"]["value"] == pytest.approx(tokens * math.log2(320) / size, rel=1e-6)
    assert int(scores.samples["tokens"][4:].sum()) == tokens
    assert scores.warnings == ("sums: all 4 answers are empty",)  # of equal logits the first token, end of text, is taken


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("task", "name"), [(sums_task(), "sums"), (prose_task(), "prose")])
def test_logits_that_are_not_finite_name_the_task(product: Path, taught: tuple[Any, Any], task: Any, name: str, value: float) -> None:
    model, tokenizer = taught
    session = EvalSession(product, protocol(task), tokenizer=tokenizer, how=Execution())
    with head_of(model, value), pytest.raises(ValueError, match=rf"task {name}: .* logits are not finite"):
        session.score(model)


@contextmanager
def head_of(model: Any, value: float) -> Iterator[None]:
    """Within the block every weight of the LM head is this value."""
    kept = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.fill_(value)
        yield
        model.lm_head.weight.copy_(kept)


def test_a_model_of_another_dtype_is_refused(session: EvalSession, taught: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"case is for float32 and the model is torch\.bfloat16: load it as float32"):
        session.score(copy.deepcopy(taught[0]).to(torch.bfloat16))


def test_prompts_longer_than_the_context_are_counted_and_refused(tmp_path: Path, taught: tuple[Any, Any]) -> None:
    model, tokenizer = taught
    spec = protocol(sums_task(max_new_tokens=120))
    session = EvalSession(build(spec, tmp_path), spec, tokenizer=tokenizer, how=Execution())
    prompt = len(tokenizer("Question: What is 3 and 4?\nAnswer:")["input_ids"])
    with pytest.raises(ValueError, match=rf"sums: 4 of 4 prompts .* context of 128 tokens \(the longest has {prompt + 120}\)"):
        session.score(model)


def test_shots_stand_before_every_question_in_the_same_order(tmp_path: Path, taught: tuple[Any, Any]) -> None:
    spec = protocol(sums_task(shots=2))
    (task,) = load_tasks(build(spec, tmp_path), spec, taught[1])
    shots = "Question: What is 1 and 1?\nAnswer: 1 + 1 = 2\n#### 2\n\nQuestion: What is 2 and 2?\nAnswer: 2 + 2 = 4\n#### 4\n\n"
    assert [request.args[0] for request in task.requests] == [f"{shots}Question: What is {a} and {b}?\nAnswer:" for a, b in SUMS]


def test_documents_reach_the_model_as_they_are_written(product: Path, taught: tuple[Any, Any]) -> None:
    _, task = load_tasks(product, protocol(), taught[1])
    assert [request.args[0] for request in task.requests] == list(PROSE)


def test_progress_never_falls_and_ends_at_the_number_of_requests(session: EvalSession, taught: tuple[Any, Any]) -> None:
    seen: list[tuple[float, float, str]] = []
    session.score(taught[0], progress=lambda done, total, unit: seen.append((done, total, unit)))
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert seen[-1] == (4 + len(PROSE), 4 + len(PROSE), "requests")


@pytest.mark.parametrize(
    ("answer", "strict", "flexible"),
    [
        ("3 + 4 = 7\n#### 7", 1.0, 1.0),
        ("3 + 4 = 7", 0.0, 1.0),  # the number is there, not in its form
        ("#### 7.", 1.0, 1.0),
        ("#### $7", 0.0, 1.0),
        ("#### 7 #### 8", 1.0, 0.0),  # strict takes the first, flexible the last
        ("I do not know", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_answers_are_read_as_gsm8k_reads_them(product: Path, taught: tuple[Any, Any], answer: str, strict: float, flexible: float) -> None:
    task, _ = load_tasks(product, protocol(), taught[1])
    row = score_outputs(task, [answer, "a", "b", "c"], taught[1]).rows[0]
    assert (row["exact_match_strict"], row["exact_match_flexible"]) == (strict, flexible)


def test_answers_that_are_all_the_same_are_reported(product: Path, taught: tuple[Any, Any]) -> None:
    task, _ = load_tasks(product, protocol(), taught[1])
    assert score_outputs(task, [" #### 7"] * 4, taught[1]).warnings == ["sums: all 4 answers are the same: '#### 7'"]


def test_a_perplexity_beyond_the_floats_is_infinite_and_its_bits_are_not(product: Path, taught: tuple[Any, Any]) -> None:
    _, task = load_tasks(product, protocol(), taught[1])
    metrics = score_outputs(task, [-1e6] * len(PROSE), taught[1]).metrics
    assert metrics["word_perplexity"]["value"] == math.inf
    size = sum(len(text.encode()) for text in PROSE)
    assert metrics["bits_per_byte"]["value"] == pytest.approx(1e6 * len(PROSE) / size / math.log(2))


def test_written_scores_are_read_back(session: EvalSession, taught: tuple[Any, Any], tmp_path: Path) -> None:
    scores = session.score(taught[0])
    write_scores(scores, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {
        "primary": scores.primary,
        "metrics": scores.metrics,
        "warnings": [],
        "seconds": scores.seconds,
        "answered": scores.answered,
    }
    assert {task: answered["batches"] for task, answered in scores.answered.items()} == {"sums": [4], "prose": [len(PROSE)]}
    samples = pandas.read_parquet(tmp_path / "samples.parquet")
    pandas.testing.assert_frame_equal(samples, scores.samples)
    assert list(samples.columns[:5]) == ["task", "document", "prompt_digest", "answer", "tokens"]


@given(st.text("aZ09_-.,@/: é", min_size=1), st.text("bY8_-@ ß", min_size=1))
def test_names_of_metrics_are_legal_in_mlflow(metric: str, filter_name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", metric_name(metric, filter_name))


def test_names_of_metrics_say_metric_and_filter() -> None:
    assert metric_name("exact_match", "strict-match") == "exact_match_strict"
    assert metric_name("bits_per_byte", "none") == "bits_per_byte"
    assert metric_name("pass@1", "create_test") == "pass_at_1_create_test"
