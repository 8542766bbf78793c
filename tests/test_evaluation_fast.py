"""The fast model side says what the harness's own model says, for every family and every way of writing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.evaluation.reader import Reader
from cpt_lab.evaluation.writing import Draw, Stops, chances, drawn
from cpt_lab.specs import ModelShape
from factory import tiny_shape, tiny_shapes, tiny_tokenizer
from fast_cases import QUESTIONS, SHOTS, TEXTS, WRITING, assert_equal, chosen, model_of, outputs, read, sides, task, written


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    torch.set_num_threads(1)
    return tiny_tokenizer()


@pytest.fixture
def deep() -> Any:
    return model_of(tiny_shape(num_layers=4))


@pytest.mark.parametrize("shape", tiny_shapes(kv_heads=(4, 2)), ids=lambda shape: f"{shape.family}-{shape.num_kv_heads}")
def test_fast_equals_reference_for_every_family(shape: ModelShape, tokenizer: Any) -> None:
    model, tasks = model_of(shape), [written(), chosen(), read()]
    fast, reference = sides(tasks, model, tokenizer), sides(tasks, model, tokenizer, mode="reference")
    assert {fast.answered(each.name)["mode"] for each in tasks} == {"fast"}
    assert all(fast.answered(each.name)["prefix"][0] >= len(tokenizer(SHOTS)["input_ids"]) for each in tasks[:2])
    assert_equal(outputs(fast, tasks, model), outputs(reference, tasks, model))


@pytest.mark.parametrize("family", ["gemma2", "olmo3", "mistral", "phi3", "qwen2"])
def test_fast_equals_reference_behind_sliding_windows(family: str, tokenizer: Any) -> None:
    model, tasks = model_of(tiny_shape(family, num_kv_heads=2)), [written(), chosen(), read()]
    wide = outputs(sides(tasks, model, tokenizer), tasks, model)
    narrow_windows(model, 24)
    fast = outputs(sides(tasks, model, tokenizer), tasks, model)
    assert_equal(fast, outputs(sides(tasks, model, tokenizer, mode="reference"), tasks, model))
    assert fast[1] != wide[1]


def narrow_windows(model: Any, window: int) -> None:
    """Every layer of a model sees so many tokens back, itself included."""
    config = model.config
    config.sliding_window = window
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    if hasattr(model.base_model, "has_sliding_layers"):
        model.base_model.has_sliding_layers = True
    for module in model.modules():
        if hasattr(module, "sliding_window"):
            module.sliding_window = window
        for name in ("attention_type", "layer_type"):
            if hasattr(module, name):
                setattr(module, name, "sliding_attention")


def test_a_soft_cap_is_part_of_the_fast_attention(tokenizer: Any) -> None:
    model, tasks = model_of(tiny_shape("gemma2")), [written(), chosen(), read()]
    capped = outputs(sides(tasks, model, tokenizer), tasks, model)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.5
    fast = outputs(sides(tasks, model, tokenizer), tasks, model)
    assert_equal(fast, outputs(sides(tasks, model, tokenizer, mode="reference"), tasks, model))
    assert fast[1] != capped[1]


ODD_PAIRS = [
    ("", " the sea"),
    ("", "<|endoftext|>Anna"),
    ("<|endoftext|>Anna has", " 7"),
    ("Anna has   ", "7 apples"),
    ("Anna has 7 apples and", " gives 2 of them to Tom. How many are left?"),
    ("Anna has 7 apples and", " gives 2 of them to Tom."),
    ("x", " y"),
]


def test_contexts_are_encoded_as_the_harness_encodes_them(deep: Any, tokenizer: Any) -> None:
    tasks = [written(), task("loglikelihood", ODD_PAIRS), read()]
    assert_equal(outputs(sides(tasks, deep, tokenizer), tasks, deep), outputs(sides(tasks, deep, tokenizer, mode="reference"), tasks, deep))


def test_texts_longer_than_the_context_are_read_in_windows(deep: Any, tokenizer: Any) -> None:
    long = task("loglikelihood_rolling", [(TEXTS[2] * 12,), (TEXTS[2],)])
    tasks = [written(), chosen(), long]
    fast = sides(tasks, deep, tokenizer)
    found = outputs(fast, tasks, deep)
    assert sum(fast.answered("loglikelihood_rolling")["batches"]) > 3
    assert found[2] == pytest.approx(outputs(sides(tasks, deep, tokenizer, mode="reference"), tasks, deep)[2], rel=1e-6)


# ----------------------------------------------------------------------------------------------------------- batches


def test_batches_change_no_text_and_are_told(deep: Any, tokenizer: Any) -> None:
    tasks = [written(), chosen(), read()]
    by_batch = {batch: sides(tasks, deep, tokenizer, eval_batch=batch) for batch in (1, 3, "auto")}
    found = {batch: outputs(side, tasks, deep) for batch, side in by_batch.items()}
    assert_equal(found[1], found["auto"])
    assert_equal(found[3], found["auto"])
    assert {batch: side.answered("generate_until")["batches"] for batch, side in by_batch.items()} == {1: [1] * 4, 3: [3, 1], "auto": [4]}


def test_a_batch_that_does_not_fit_is_halved_once_and_for_all(deep: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [written(), chosen(), read()]
    whole = outputs(sides(tasks, deep, tokenizer, eval_batch=4), tasks, deep)
    read_tokens = Reader.read

    def small(self: Reader, tokens: torch.Tensor, rows: Any) -> torch.Tensor:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read_tokens(self, tokens, rows)

    monkeypatch.setattr(Reader, "read", small)
    side = sides(tasks, deep, tokenizer, eval_batch=4)
    assert_equal(outputs(side, tasks, deep), whole)
    assert [side.answered(each.name)["batches"] for each in tasks] == [[2, 2], [2, 2], [1, 2]]


def test_a_row_that_does_not_fit_alone_is_an_error(deep: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Reader, "read", full)
    with pytest.raises(torch.OutOfMemoryError):
        outputs(sides([read()], deep, tokenizer), [read()], deep)


def test_low_precision_is_read_too(tokenizer: Any) -> None:
    model = model_of(tiny_shape()).to(torch.bfloat16)
    tasks = [written(), chosen(), read()]
    fast = outputs(sides(tasks, model, tokenizer), tasks, model)
    full = model_of(tiny_shape())
    exact = outputs(sides(tasks, full, tokenizer), tasks, full)
    assert [value for value, _ in fast[1]] == pytest.approx([value for value, _ in exact[1]], rel=0.05, abs=0.2)
    assert fast == outputs(sides(tasks, model, tokenizer), tasks, model)


# ------------------------------------------------------------------------------------------------------------ answers


def test_what_is_drawn_belongs_to_the_document_and_the_repetition_whatever_the_batch(deep: Any, tokenizer: Any) -> None:
    settings = {**WRITING, "do_sample": True, "temperature": 0.8, "top_p": 0.95}
    asked = task("generate_until", [(f"{SHOTS}Question: {question} Answer:", settings) for question in QUESTIONS], repeats=3)
    (one,), (two,) = (outputs(sides([asked], deep, tokenizer, eval_batch=batch), [asked], deep) for batch in (5, "auto"))
    assert one == two
    assert len(one) == 3 * len(QUESTIONS)
    assert len(set(one[:3])) > 1


def test_a_greedy_answer_is_written_once_however_often_it_is_wanted(deep: Any, tokenizer: Any) -> None:
    once = written()
    thrice = task("generate_until", [request.args for request in once.requests], repeats=3)
    side = sides([thrice], deep, tokenizer)
    (answers,) = outputs(side, [thrice], deep)
    assert answers == [answer for answer in outputs(sides([once], deep, tokenizer), [once], deep)[0] for _ in range(3)]
    assert sum(side.answered("generate_until")["batches"]) == len(QUESTIONS)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    numbers = chances(0, "a document", 20_000)
    found = drawn(logits.expand(20_000, 5), Draw(temperature=0.5, top_k=3, top_p=1.0), numbers)
    expected = (logits[:3] / 0.5).softmax(0)
    assert torch.bincount(found, minlength=5)[3:].sum() == 0
    assert torch.bincount(found, minlength=3)[:3] / 20_000 == pytest.approx(expected, abs=0.01)


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 4))
def test_a_draw_never_gives_a_token_without_mass(chance: float, certain: int) -> None:
    logits = torch.full((1, 5), -torch.inf)
    logits[0, certain] = 0.0
    assert drawn(logits, Draw(1.0, 0, 1.0), torch.tensor([chance], dtype=torch.float64)).tolist() == [certain]


@pytest.mark.parametrize("until", [["Question:"], ["7"], ["ä"], [" "], ["\n\n", "<|endoftext|>"]])
def test_an_answer_ends_where_its_text_holds_a_stop(tokenizer: Any, until: list[str]) -> None:
    stops = Stops(tokenizer, until, [], len(tokenizer))
    text = f"The sea has{until[0]}and more"
    ids = tokenizer(text)["input_ids"]
    ended = next(count for count in range(1, len(ids) + 1) if stops.after(ids[:count]))
    assert until[0] in tokenizer.decode(ids[:ended])
    assert until[0] not in tokenizer.decode(ids[: ended - 1])
    assert stops.text(ids[:ended]) == text.split(until[0])[0]


@pytest.mark.parametrize(("settings", "why"), [({"num_beams": 2}, "num_beams"), ({"repetition_penalty": 1.2}, "repetition_penalty")])
def test_settings_that_the_fast_side_does_not_follow_are_left_to_the_harness(
    deep: Any, tokenizer: Any, settings: dict[str, Any], why: str
) -> None:
    tasks = [written(**settings), chosen(), read()]
    side = sides(tasks, deep, tokenizer)
    assert_equal(outputs(side, tasks, deep), outputs(sides(tasks, deep, tokenizer, mode="reference"), tasks, deep))
    assert (side.answered("generate_until")["mode"], side.answered("generate_until")["why"]) == (
        "reference",
        f"answers are written with {why}",
    )
    assert side.answered("loglikelihood")["mode"] == "fast"


def test_a_model_that_is_told_to_avoid_repetition_is_left_to_the_harness(deep: Any, tokenizer: Any) -> None:
    deep.generation_config.repetition_penalty = 1.5
    tasks = [written(), chosen(), read()]
    side = sides(tasks, deep, tokenizer)
    assert side.answered("generate_until")["why"] == "answers are written with repetition_penalty"
    assert_equal(outputs(side, tasks, deep), outputs(sides(tasks, deep, tokenizer, mode="reference"), tasks, deep))


def test_rotations_that_depend_on_the_longest_text_are_left_to_the_harness(tokenizer: Any) -> None:
    model = model_of(tiny_shape("llama"))
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "dynamic"}
    answered = sides([chosen()], model, tokenizer).answered("loglikelihood")
    assert answered["mode"] == "reference"
    assert "depend on the longest text" in answered["why"]


def test_draws_at_temperature_zero_are_refused(deep: Any, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"drawn \(do_sample\) at temperature 0.0: raise it, or set do_sample to false"):
        sides([written(do_sample=True)], deep, tokenizer)
