from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compositions import points
from cpt_lab.interventions import parse
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.interventions.transplant import Transplant
from cpt_lab.patch import apply
from cpt_lab.specs import Evaluation, Heads, ModelShape, Patched, identity
from factory import each_family, folder_spec, tiny_shape, tiny_shapes
from spectral_cases import (
    BY_HAND,
    Array,
    arrays,
    assert_close,
    assert_lives_as_it_is_mapped,
    blocks,
    changed_by_hand,
    checkpoints,
    patched,
    svd,
    title,
)

SHAPE = tiny_shape(num_kv_heads=2)


def transplant(shape: ModelShape, source: str = "base", roles: tuple[str, ...] | None = None) -> Transplant:
    wanted: Any = roles or tuple(dict.fromkeys(role for role, _, _ in blocks(shape)))
    return Transplant(name=source, source=folder_spec(Path(source), shape), roles=wanted)


def by_hand(tuned: Array, base: Array) -> Array:
    left, _, right = svd(tuned)
    _, singular, _ = svd(base)
    result: Array = left @ (singular[:, None] * right.T)
    return result


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
@pytest.mark.parametrize("source", ["base", "reference"])
def test_each_block_takes_the_singular_values_of_the_sources_and_the_rest_is_tuned(shape: ModelShape, source: str) -> None:
    expected = changed_by_hand(shape, blocks(shape), by_hand, source=source)
    assert_close(patched(transplant(shape, source).patch(shape), shape), expected)


@pytest.mark.parametrize("shape", each_family(tiny_shapes(kv_heads=(4, 2))), ids=title)
def test_a_checkpoint_transplanted_into_itself_is_itself_to_rounding(shape: ModelShape) -> None:
    change = Transplant(name="base", source=folder_spec(Path("base"), shape), roles=("q", "k", "v", "o", "up", "down"))
    tuned = checkpoints(shape)["tuned"]
    assert_close(dict(apply(change.patch(shape), tuned, {"base": tuned})), arrays(tuned), atol=1e-7)


def test_the_bits_are_the_same_in_place_and_the_models_own_come_back() -> None:
    for shape in BY_HAND:
        assert_lives_as_it_is_mapped([transplant(shape).patch(shape), transplant(shape, "reference").patch(shape)], shape)


def test_a_transplant_after_a_rewind_is_of_the_rewound_weights_and_spoils_no_later_point() -> None:
    every = tuple((layer, head) for layer in range(2) for head in range(4))
    rewind = Rewind(base=folder_spec(Path("base"), SHAPE), select=Heads(heads=every)).patch(SHAPE)
    values = transplant(SHAPE, "reference", ("q", "k", "v", "o")).patch(SHAPE)
    assert_lives_as_it_is_mapped([values, rewind.then(values), values, values.then(rewind)], SHAPE)
    of_base = apply(values, checkpoints(SHAPE)["base"], checkpoints(SHAPE))
    found = patched(rewind.then(values), SHAPE)
    attention = [parameter for parameter in found if ".self_attn." in parameter]
    assert_close(
        {parameter: found[parameter] for parameter in attention}, arrays({parameter: of_base[parameter] for parameter in attention})
    )


def test_a_source_of_another_size_is_refused() -> None:
    small = checkpoints(tiny_shape(num_heads=4, num_layers=1, num_kv_heads=2))["base"]
    wide = {name: torch.cat([tensor, tensor], -1) for name, tensor in small.items()}
    found = apply(transplant(SHAPE, roles=("up",)).patch(SHAPE), checkpoints(SHAPE)["tuned"], {"base": wide})
    with pytest.raises(ValueError, match="differs in shape from base"):
        found["model.layers.0.mlp.up_proj.weight"]


def test_the_sources_name_is_not_part_of_what_is_asked_for() -> None:
    shape = SHAPE
    one, other = (Transplant(name=name, source=folder_spec(Path("base"), shape), roles=("q",)) for name in ("base", "reference"))
    assert identity(one) == identity(other)


def test_the_configuration_says_whose_values() -> None:
    (point,) = points("intervention=transplant", "intervention.roles=[o]")
    assert isinstance(point.spec, Evaluation)
    assert isinstance(point.spec.checkpoint, Patched)
    (change,) = point.spec.checkpoint.interventions
    assert isinstance(change, Transplant)
    assert (change.name, change.roles) == ("base", ("o",))
    assert change.sources() == {"base": change.source}
    assert parse(change.model_dump()) == change
