from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cpt_lab.architecture import group_size, head_slices
from cpt_lab.interventions import Rewind, parse
from cpt_lab.patch import Patch, apply
from cpt_lab.specs import Head, Heads, ModelShape, Ranking, TopOf
from cpt_lab.weights import open_weights
from factory import folder_spec, tiny_checkpoint, tiny_shape

FAMILY_SHAPES = [tiny_shape(family, num_kv_heads=kv_heads) for family in ("olmo2", "llama", "qwen2") for kv_heads in (4, 2)]
POLICIES = ("when_group_complete", "with_first", "never")


def name(shape: ModelShape) -> str:
    return f"{shape.family}-{shape.num_heads}of{shape.num_kv_heads}"


def all_heads(shape: ModelShape) -> tuple[Head, ...]:
    return tuple((layer, head) for layer in range(shape.num_layers) for head in range(shape.num_heads))


def rewind(shape: ModelShape, heads: tuple[Head, ...], **settings: Any) -> Rewind:
    return Rewind(base=folder_spec(Path("base"), shape), select=Heads(heads=heads), **settings)


def pair(folder: Path, shape: ModelShape) -> tuple[Any, Any]:
    sizes: dict[str, Any] = {"family": shape.family, "num_kv_heads": shape.num_kv_heads}
    return tuple(open_weights(tiny_checkpoint(folder / part, seed=seed, **sizes)) for seed, part in enumerate(["tuned", "base"]))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", FAMILY_SHAPES, ids=name)
def test_rewinding_no_head_is_tuned_bit_for_bit(shape: ModelShape, tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, shape)
    patch = rewind(shape, ()).patch(shape)
    assert patch == Patch()
    patched = apply(patch, tuned, {"base": base})
    assert all(torch.equal(patched[parameter], tuned[parameter]) for parameter in tuned)


@pytest.mark.parametrize("shape", FAMILY_SHAPES, ids=name)
def test_rewinding_every_head_gives_the_base_attention_and_the_rest_of_tuned(shape: ModelShape, tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, shape)
    patched = apply(rewind(shape, all_heads(shape)).patch(shape), tuned, {"base": base})
    for parameter in tuned:
        expected = base if ".self_attn." in parameter else tuned
        assert torch.equal(patched[parameter], expected[parameter]), parameter
        assert not torch.equal(tuned[parameter], base[parameter]), parameter


@pytest.mark.parametrize("shape", FAMILY_SHAPES, ids=name)
def test_a_rewind_writes_no_slice_twice(shape: ModelShape) -> None:
    for policy in POLICIES:
        targets = [edit.target for edit in rewind(shape, all_heads(shape), kv=policy).patch(shape).edits]
        assert not any(left.overlaps(right) for place, left in enumerate(targets) for right in targets[:place])


def kv_written(shape: ModelShape, heads: tuple[Head, ...], policy: str) -> set[int]:
    """The groups of layer 0 whose v a rewind writes."""
    targets = (edit.target for edit in rewind(shape, heads, kv=policy).patch(shape).edits)
    return {target.start // shape.head_dim for target in targets if target.parameter == "model.layers.0.self_attn.v_proj.weight"}


@pytest.mark.parametrize(
    ("heads", "policy", "groups"),
    [
        (((0, 0),), "when_group_complete", set()),
        (((0, 0), (0, 1)), "when_group_complete", {0}),
        (((0, 1), (0, 2), (0, 3)), "when_group_complete", {1}),
        (((0, 1),), "with_first", {0}),
        (((0, 1), (0, 2), (0, 3)), "with_first", {0, 1}),
        (((0, 0), (0, 1), (0, 2), (0, 3)), "never", set()),
    ],
)
def test_shared_k_and_v_follow_their_policy(heads: tuple[Head, ...], policy: str, groups: set[int]) -> None:
    shape = tiny_shape(num_kv_heads=2)
    assert group_size(shape) == 2
    assert kv_written(shape, heads, policy) == groups


def test_a_group_is_of_one_layer() -> None:
    assert kv_written(tiny_shape(num_kv_heads=2), ((0, 0), (1, 1)), "when_group_complete") == set()


def test_with_multi_head_attention_all_policies_are_one() -> None:
    shape = tiny_shape()
    patches = [rewind(shape, ((0, 1), (1, 3)), kv=policy).patch(shape) for policy in POLICIES]
    assert patches[0] == patches[1] == patches[2]
    assert {edit.target for edit in patches[0].edits} == {*head_slices(shape, 0, 1), *head_slices(shape, 1, 3)}


def test_a_rewind_of_a_ranking_needs_the_order_first() -> None:
    shape = tiny_shape()
    ranked = Ranking(criterion="random", direction="ascending", shape=shape, seed=0)
    change = Rewind(base=folder_spec(Path("base"), shape), select=TopOf(ranking=ranked, fraction=0.25))
    with pytest.raises(ValueError, match="needs the order of its ranking first"):
        change.patch(shape)
    order = tuple(reversed(all_heads(shape)))
    assert change.with_ranking(order).patch(shape) == rewind(shape, ((1, 2), (1, 3))).patch(shape)


def test_a_head_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no head 4 in layer 0"):
        rewind(tiny_shape(), ((0, 4),)).patch(tiny_shape())


def test_an_unknown_intervention_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown intervention 'rewnd' \(did you mean rewind\?\)"):
        parse({"kind": "rewnd"})


def test_an_intervention_comes_back_from_what_was_dumped() -> None:
    change = rewind(tiny_shape(), ((0, 1),))
    assert parse(change.model_dump()) == change
