"""What the fast model side keeps from one model to the next: it changes no bit, saves layers, and is never stale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.evaluation.boundaries import Boundaries, weights_below
from factory import tiny_shape, tiny_tokenizer
from fast_cases import assert_equal, chosen, model_of, outputs, read, sides, written
from long_tables import rest_slow


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    torch.set_num_threads(1)
    return tiny_tokenizer()


@pytest.fixture
def deep() -> Any:
    return model_of(tiny_shape(num_layers=4))


@contextmanager
def scaled(parameter: torch.Tensor, factor: float) -> Iterator[None]:
    """Within the block the first values of a parameter are scaled, in place, by a power of two."""
    with torch.no_grad():
        parameter.view(-1)[:64] *= factor
        yield
        parameter.view(-1)[:64] /= factor


@contextmanager
def layers_read(model: Any) -> Iterator[list[int]]:
    """Within the block the list notes the layer of every forward pass that one does."""
    seen: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, place=place: seen.append(place)) for place, layer in enumerate(model.base_model.layers)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("layer", range(4))
def test_what_is_kept_changes_no_bit(deep: Any, tokenizer: Any, layer: int) -> None:
    tasks = [written(), chosen(), read()]
    warm = sides(tasks, deep, tokenizer)
    outputs(warm, tasks, deep)
    with scaled(deep.model.layers[layer].self_attn.o_proj.weight, 4.0):
        resumed, fresh = outputs(warm, tasks, deep), outputs(sides(tasks, deep, tokenizer), tasks, deep)
    assert resumed == fresh


@pytest.mark.parametrize("layer", range(4))
def test_reading_goes_on_from_the_lowest_edited_layer(deep: Any, tokenizer: Any, layer: int) -> None:
    tasks = [chosen(), read()]
    warm = sides(tasks, deep, tokenizer)
    outputs(warm, tasks, deep)
    with scaled(deep.model.layers[layer].mlp.up_proj.weight, 2.0), layers_read(deep) as seen:
        outputs(warm, tasks, deep)
    assert set(seen) == set(range(layer, 4))


def test_of_unchanged_weights_only_the_last_layer_is_read_again(deep: Any, tokenizer: Any) -> None:
    tasks = [chosen()]
    warm = sides(tasks, deep, tokenizer)
    outputs(warm, tasks, deep)
    with layers_read(deep) as seen:
        outputs(warm, tasks, deep)
    assert seen == [3, 3]  # both batches; the prefix is known in full


PLACES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{layer}.self_attn.{name}.weight" for layer in (0, 2) for name in ("k_proj", "v_proj")),
]


@pytest.mark.parametrize(
    "name", rest_slow([*PLACES, "model.layers.0.mlp.down_proj.weight", "model.layers.1.post_attention_layernorm.weight"], fast=2)
)
def test_a_weight_changed_behind_its_back_is_noticed(deep: Any, tokenizer: Any, name: str) -> None:
    tasks = [written(), chosen(), read()]
    warm = sides(tasks, deep, tokenizer)
    before = outputs(warm, tasks, deep)
    deep.get_parameter(name).data.view(-1)[::3].mul_(-1.5)  # no hook, no version counter sees it
    after = outputs(warm, tasks, deep)
    assert after == outputs(sides(tasks, deep, tokenizer), tasks, deep)
    assert after[1] != before[1]


def test_a_cache_that_survived_an_edit_would_be_seen(deep: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [written(), chosen(), read()]
    monkeypatch.setattr("cpt_lab.evaluation.fast_model.weights_below", lambda _, layers: ("always the same",) * (len(layers) + 1))
    stale = sides(tasks, deep, tokenizer)
    outputs(stale, tasks, deep)
    with scaled(deep.model.layers[0].self_attn.v_proj.weight, 4.0), pytest.raises(AssertionError):
        assert_equal(outputs(stale, tasks, deep), outputs(sides(tasks, deep, tokenizer, mode="reference"), tasks, deep))


def test_layers_taken_out_are_noticed(deep: Any, tokenizer: Any) -> None:
    tasks = [chosen(), read()]
    warm = sides(tasks, deep, tokenizer)
    outputs(warm, tasks, deep)
    deep.model.layers = torch.nn.ModuleList([deep.model.layers[0], *deep.model.layers[2:]])
    deep.config.num_hidden_layers = 3
    for place, layer in enumerate(deep.model.layers):
        layer.self_attn.layer_idx = place
    assert outputs(warm, tasks, deep) == outputs(sides(tasks, deep, tokenizer), tasks, deep)


@given(st.integers(0, 5), st.integers(0, 6), st.integers(0, 31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_one_changed_bit_changes_the_digest_of_all_that_is_above(row: int, column: int, bit: int, dtype: torch.dtype) -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(7, 6, dtype=dtype) for _ in range(3))
    body = torch.nn.ModuleDict({"layers": layers, "embedding": torch.nn.Embedding(5, 7)})
    before = weights_below(body, layers)
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    layers[1].weight.data.view(whole)[row, column] ^= 1 << bit % (8 * dtype.itemsize - 1)
    after = weights_below(body, layers)
    assert [left == right for left, right in zip(before, after, strict=True)] == [True, True, False, False]


def test_what_is_kept_stays_within_its_room() -> None:
    kept = Boundaries(budget=100)
    kept.begin(("a", "b"))
    kept.put("batch", 1, torch.zeros(20))
    kept.put("another", 1, torch.zeros(20))
    assert kept.get("batch", 1) is not None
    assert kept.get("another", 1) is None


def test_kept_inputs_give_way_to_those_of_weights_that_come_again() -> None:
    kept = Boundaries(budget=100)
    wanted = []
    for below in ("a", "b", "a", "b", "b", "b"):
        kept.begin((below, below))
        wanted.append(kept.wants("batch", 1))
        if wanted[-1]:
            kept.put("batch", 1, torch.zeros(20))
    assert wanted == [True, False, False, False, True, False]
