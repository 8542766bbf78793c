from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compositions import points
from cpt_lab import factors
from cpt_lab.edits import ROOM, Memo, narrow
from cpt_lab.interventions import parse
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.interventions.truncate import Truncate
from cpt_lab.patch import LiveModel, Patch, apply
from cpt_lab.specs import Evaluation, Heads, ModelShape, Patched
from cpt_lab.spectral_edits import MOST_KEPT, room_to_keep
from factory import each_family, folder_spec, tiny_model, tiny_shape, tiny_shapes
from long_tables import rest_slow
from spectral_cases import (
    BY_HAND,
    Array,
    arrays,
    assert_close,
    assert_lives_as_it_is_mapped,
    bits,
    blocks,
    changed_by_hand,
    checkpoints,
    live,
    patched,
    same_bits,
    svd,
    title,
    weights_of,
)

SHAPE = tiny_shape(num_kv_heads=2)


def truncate(shape: ModelShape, percent: int, *, roles: tuple[str, ...] | None = None) -> Truncate:
    wanted: Any = roles or tuple(dict.fromkeys(role for role, _, _ in blocks(shape)))
    return Truncate(base=folder_spec(Path("base"), shape), percent=percent, roles=wanted)


def rewind(shape: ModelShape, heads: tuple[tuple[int, int], ...]) -> Rewind:
    return Rewind(base=folder_spec(Path("base"), shape), select=Heads(heads=heads))


def by_hand(tuned: Array, base: Array, percent: int) -> Array:
    left, singular, right = svd(tuned - base)
    result = base.copy()
    for index in range(percent * len(singular) // 100):
        result += singular[index] * np.outer(left[:, index], right[:, index])
    return result


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
@pytest.mark.parametrize("percent", [30, 50, 87])
def test_a_truncation_is_that_of_each_block_alone_and_the_rest_is_tuned(shape: ModelShape, percent: int) -> None:
    expected = changed_by_hand(shape, blocks(shape), lambda tuned, base: by_hand(tuned, base, percent))
    assert_close(patched(truncate(shape, percent).patch(shape), shape), expected)


@pytest.mark.parametrize("shape", each_family(tiny_shapes(kv_heads=(4, 2))), ids=title)
def test_all_kept_is_tuned_bit_for_bit(shape: ModelShape) -> None:
    change = Truncate(base=folder_spec(Path("base"), shape), percent=100, roles=("q", "k", "v", "o", "up", "down"))
    assert change.settled() is None
    assert same_bits(patched(change.patch(shape), shape), checkpoints(shape)["tuned"])


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
def test_none_kept_is_the_base_in_every_block_bit_for_bit_and_tuned_elsewhere(shape: ModelShape) -> None:
    expected = {name: tensor.clone() for name, tensor in checkpoints(shape)["tuned"].items()}
    for _, parameter, index in blocks(shape):
        expected[parameter][index] = checkpoints(shape)["base"][parameter][index]
    assert same_bits(patched(truncate(shape, 0).patch(shape), shape), expected)


@pytest.mark.parametrize("shape", each_family(tiny_shapes(kv_heads=(4, 2))), ids=title)
def test_no_block_is_edited_twice(shape: ModelShape) -> None:
    change = Truncate(base=folder_spec(Path("base"), shape), percent=50, roles=("q", "k", "v", "o", "up", "down"))
    targets = [edit.target for edit in change.patch(shape).edits]
    assert not any(left.overlaps(right) for place, left in enumerate(targets) for right in targets[:place])
    assert len(targets) == shape.num_layers * (2 * shape.num_heads + 2 * shape.num_kv_heads + 2)


def test_roles_that_are_not_named_stay_tuned() -> None:
    changed = patched(truncate(SHAPE, 0, roles=("q", "down")).patch(SHAPE), SHAPE)
    tuned = checkpoints(SHAPE)["tuned"]
    assert {name.split(".")[-2] for name in tuned if not torch.equal(changed[name], tuned[name])} == {"q_proj", "down_proj"}


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
def test_a_live_ladder_has_the_bits_of_the_mappings_and_gives_the_models_own_back(shape: ModelShape) -> None:
    assert_lives_as_it_is_mapped([truncate(shape, percent).patch(shape) for percent in (90, 40, 100, 0, 60)], shape)


@settings(max_examples=10, deadline=None)
@given(chain=st.lists(st.one_of(st.integers(0, 100), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), max_size=4)), max_size=3))
def test_a_live_chain_of_truncations_and_rewinds_has_the_bits_of_the_mapping(chain: list[Any]) -> None:
    model, patch = warm(), Patch()
    for link in chain:
        change = truncate(SHAPE, link) if isinstance(link, int) else rewind(SHAPE, tuple(link))
        patch = patch.then(change.patch(SHAPE))
    model.set(truncate(SHAPE, 50).patch(SHAPE))
    model.set(patch)
    assert same_bits(bits(model), patched(patch, SHAPE))
    model.reset()
    assert same_bits(bits(model), checkpoints(SHAPE)["tuned"])


@cache
def warm() -> LiveModel:
    """One for all examples, so that what one leaves in the memo must be right for the next."""
    return live(SHAPE)


def test_a_truncation_after_another_truncates_what_that_one_left() -> None:
    """The best approximation of rank 4 of the best one of rank 6 is the best one of rank 4; the other way round nothing is left to cut."""
    at = {percent: truncate(SHAPE, percent).patch(SHAPE) for percent in (50, 75)}
    expected = arrays(patched(at[50], SHAPE))
    assert_close(patched(at[75].then(at[50]), SHAPE), expected)
    assert_close(patched(at[50].then(at[75]), SHAPE), expected)


def test_rewound_heads_have_no_delta_to_truncate_and_the_order_does_not_matter_for_them() -> None:
    heads = tuple((layer, head) for layer in range(2) for head in range(4))
    one, other = truncate(SHAPE, 50).patch(SHAPE), rewind(SHAPE, heads).patch(SHAPE)
    assert_close(patched(other.then(one), SHAPE), arrays(patched(one.then(other), SHAPE)), atol=0)


def test_each_block_is_decomposed_once_for_all_points_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, decompose = [], factors.short_side

    def counted(matrix: Tensor) -> factors.ShortSide:
        calls.append(matrix.shape)
        return decompose(matrix)

    monkeypatch.setattr(factors, "short_side", counted)
    model = live(SHAPE)
    for percent in (10, 20, 50, 90, 100, 0):
        model.set(truncate(SHAPE, percent).patch(SHAPE))
    assert len(calls) == len(list(blocks(SHAPE)))


def test_checkpoints_that_take_turns_under_one_name_are_told_apart_and_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, decompose = [], factors.short_side

    def counted(matrix: Tensor) -> factors.ShortSide:
        calls.append(matrix.shape)
        return decompose(matrix)

    model, weights = live(SHAPE), checkpoints(SHAPE)
    for percent in (20, 40, 60):
        for meant in ("base", "reference"):
            patch = truncate(SHAPE, percent).patch(SHAPE)
            model.read_from({"base": weights[meant]})
            with monkeypatch.context() as watched:
                watched.setattr(factors, "short_side", counted)
                model.set(patch)
            assert same_bits(bits(model), dict(apply(patch, weights["tuned"], {"base": weights[meant]})))
    assert len(calls) == 2 * len(list(blocks(SHAPE)))


def test_without_room_nothing_large_is_kept_and_the_bits_are_the_same() -> None:
    weights = checkpoints(SHAPE)
    for percent in (30, 60):
        for edit in truncate(SHAPE, percent).patch(SHAPE).edits:
            full: Memo = {ROOM: 0}
            roomy: Memo = {}
            found, again = (edit.values(narrow(weights["tuned"], edit.target), weights, memo) for memo in (full, roomy))
            assert torch.equal(found, again)
            assert full == {ROOM: 0}
            assert len(roomy) == 2


def test_a_bfloat16_checkpoint_is_rounded_once() -> None:
    weights = {name: weights_of(tiny_model(SHAPE, seed=seed, dtype=torch.bfloat16)) for seed, name in enumerate(("tuned", "base"))}
    found = apply(truncate(SHAPE, 50).patch(SHAPE), weights["tuned"], weights)
    tuned, base = arrays(weights["tuned"]), arrays(weights["base"])
    for _, parameter, index in blocks(SHAPE):
        assert found[parameter].dtype == torch.bfloat16
        exact = by_hand(tuned[parameter][index], base[parameter][index], 50)
        rounded = found[parameter].double().numpy()[index]
        # half a unit in the last place of a bfloat16 is up to 2^-8 of the value; float32 on the way adds 1e-7 of the largest
        assert np.all(np.abs(rounded - exact) <= 2.0**-8 * np.abs(exact) + 1e-6)


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    broken = {name: tensor.clone() for name, tensor in checkpoints(SHAPE)["base"].items()}
    broken["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    found = apply(truncate(SHAPE, 50).patch(SHAPE), checkpoints(SHAPE)["tuned"], {"base": broken})
    with pytest.raises(ValueError, match=r"base has 1 values in model\.layers\.1\.mlp\.up_proj\.weight that are not finite"):
        found["model.layers.1.mlp.up_proj.weight"]


def test_a_base_of_another_dtype_is_refused() -> None:
    half = {name: tensor.bfloat16() for name, tensor in checkpoints(SHAPE)["base"].items()}
    with pytest.raises(ValueError, match="convert one of the checkpoints"):
        apply(truncate(SHAPE, 50).patch(SHAPE), checkpoints(SHAPE)["tuned"], {"base": half})["model.layers.0.mlp.up_proj.weight"]


def configured(*words: str) -> Truncate:
    (point,) = points("intervention=truncate", *words)
    assert isinstance(point.spec, Evaluation)
    assert isinstance(point.spec.checkpoint, Patched)
    (change,) = point.spec.checkpoint.interventions
    assert isinstance(change, Truncate)
    return change


@pytest.mark.slow
def test_the_configuration_means_all_roles_or_those_it_names() -> None:
    change = configured("intervention.percent=30")
    assert (change.percent, change.roles) == (30, ("q", "k", "v", "o", "gate", "up", "down"))
    assert configured("intervention.percent=30", "intervention.roles=[down,q]").roles == ("q", "down")
    assert parse(change.model_dump()) == change


@pytest.mark.parametrize(
    ("words", "message"),
    rest_slow(
        [
            (("intervention.percent=101",), "got 101, allowed is a whole percentage"),
            (("intervention.percent=0.5",), r"got 0\.5, allowed is a whole percentage"),
            (("intervention.percent=true",), "got True, allowed is a whole percentage"),
            ((), r"set intervention\.percent=VALUE"),
            (("intervention.percent=5", "intervention.roles=[]"), r"got \[\], allowed are all and lists of q"),
            (("intervention.percent=5", "intervention.roles=[q,dwn]"), r"unknown role 'dwn' \(did you mean down\?\)"),
        ],
        fast=2,
    ),
)
def test_wrong_settings_are_told_in_one_sentence(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(*words)


def test_what_is_kept_between_points_leaves_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, room in ((9 << 30, 9 << 29), (200 << 30, MOST_KEPT)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: SimpleNamespace(available=available))
        assert room_to_keep() == room
