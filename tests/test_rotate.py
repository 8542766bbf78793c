from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compositions import points
from cpt_lab.interventions import parse
from cpt_lab.interventions.rotate_ablate import RotateAblate
from cpt_lab.interventions.rotate_restore import RotateRestore
from cpt_lab.patch import apply
from cpt_lab.specs import Evaluation, ModelShape, Patched
from factory import each_family, folder_spec, tiny_shape, tiny_shapes
from spectral_cases import (
    BY_HAND,
    Array,
    Place,
    arrays,
    assert_close,
    assert_lives_as_it_is_mapped,
    assert_sources_may_take_turns,
    changed_by_hand,
    checkpoints,
    patched,
    svd,
    title,
    wholes,
)

Rotation = type[RotateAblate] | type[RotateRestore]

SHAPE = tiny_shape(num_kv_heads=2)
SIDES = [(side, part) for side in ("in", "out") for part in ("attention", "mlp")]
ATTENTION = ("q", "k", "v", "o")


def rotate(kind: Rotation, shape: ModelShape, side: str, part: str, **settings: Any) -> Any:
    source = settings.pop("source", "base")
    return kind(name=source, source=folder_spec(Path(source), shape), side=side, part=part, **settings)


def places(shape: ModelShape, part: str) -> Iterator[Place]:
    for layer in range(shape.num_layers):
        yield from (place for place in wholes(shape, layer) if (place[0] in ATTENTION) == (part == "attention"))


def by_hand(post: Array, base: Array, kind: Rotation, side: str) -> Array:
    """T eq. 10, 11, 15 and 16, in its own notation: W is in x out."""
    (u_post, s_post, v_post), (u_base, _, v_base) = svd(post), svd(base)
    middle = np.diag(s_post)
    u_new, v_new = u_base @ v_base.T @ v_post, v_base @ u_base.T @ u_post
    # The signs of the base's pairs (u_base, v_base) are free: those that agree with post on the side that stays.
    stays, likewise = (u_post, u_base) if side == "out" else (v_post, v_base)
    signs = np.array([1.0 if stays[:, i] @ likewise[:, i] >= 0 else -1.0 for i in range(len(s_post))])
    if kind is RotateAblate:
        u_new, v_new = u_base * signs, v_base * signs
    result: Array = u_post @ middle @ v_new.T if side == "out" else u_new @ middle @ v_post.T
    return result


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
@pytest.mark.parametrize("kind", [RotateAblate, RotateRestore])
@pytest.mark.parametrize(("side", "part"), SIDES)
def test_vectors_of_one_side_are_the_bases_in_every_matrix_of_the_part(kind: Rotation, shape: ModelShape, side: str, part: str) -> None:
    in_by_out = shape.family == "gpt2"

    def new(post: Array, base: Array) -> Array:
        return by_hand(post, base, kind, side) if in_by_out else by_hand(post.T, base.T, kind, side).T

    found = patched(rotate(kind, shape, side, part).patch(shape), shape)
    assert_close(found, changed_by_hand(shape, places(shape, part), new), atol=1e-5)


@pytest.mark.parametrize("shape", each_family(tiny_shapes(kv_heads=(4, 2))), ids=title)
@pytest.mark.parametrize("kind", [RotateAblate, RotateRestore])
def test_where_nothing_was_rotated_it_is_the_identity_to_rounding(kind: Rotation, shape: ModelShape) -> None:
    tuned = checkpoints(shape)["tuned"]
    for side, part in SIDES:
        patch = rotate(kind, shape, side, part).patch(shape)
        assert patch.edits
        assert_close(dict(apply(patch, tuned, {"base": tuned})), arrays(tuned), atol=1e-6)


@pytest.mark.parametrize(("side", "part"), SIDES)
def test_a_rotation_common_to_both_sides_is_restored(side: str, part: str) -> None:
    """post = U_base Q S (V_base Q)^T in every matrix: T eq. 8, with alpha 1."""
    base = arrays(checkpoints(SHAPE)["base"])
    generator = np.random.default_rng(0)
    post = {name: values.copy() for name, values in base.items()}
    for _, parameter, index in places(SHAPE, part):
        left, singular, right = svd(base[parameter][index])
        turn = np.linalg.qr(generator.normal(size=(len(singular), len(singular))))[0]
        post[parameter][index] = (left @ turn * singular) @ (right @ turn).T
    weights = {name: checkpoints(SHAPE)["base"][name].new_tensor(values) for name, values in post.items()}
    restored = apply(rotate(RotateRestore, SHAPE, side, part).patch(SHAPE), weights, {"base": checkpoints(SHAPE)["base"]})
    assert_close(dict(restored), arrays(weights), atol=1e-5)


def test_another_post_trained_model_can_be_the_source() -> None:
    found = patched(rotate(RotateRestore, SHAPE, "out", "mlp", source="reference").patch(SHAPE), SHAPE)
    expected = changed_by_hand(
        SHAPE, places(SHAPE, "mlp"), lambda post, other: by_hand(post.T, other.T, RotateRestore, "out").T, source="reference"
    )
    assert_close(found, expected, atol=1e-5)


def test_signs_of_their_own_make_another_ablation_of_the_same_singular_values() -> None:
    aligned, own = (
        arrays(patched(rotate(RotateAblate, SHAPE, "out", "attention", signs=signs).patch(SHAPE), SHAPE)) for signs in ("aligned", "own")
    )
    parameter = "model.layers.0.self_attn.q_proj.weight"
    assert not np.allclose(aligned[parameter], own[parameter])
    np.testing.assert_allclose(svd(aligned[parameter])[1], svd(own[parameter])[1], atol=1e-5)


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
def test_the_bits_are_the_same_in_place_and_the_models_own_come_back(shape: ModelShape) -> None:
    patches = [rotate(kind, shape, side, part).patch(shape) for kind in (RotateAblate, RotateRestore) for side, part in SIDES]
    assert_lives_as_it_is_mapped(patches, shape)


def test_the_configuration_says_side_part_and_source() -> None:
    for name, kind in (("rotate_ablate", RotateAblate), ("rotate_restore", RotateRestore)):
        (point,) = points(f"intervention={name}", "intervention.side=in", "intervention.part=mlp")
        assert isinstance(point.spec, Evaluation)
        assert isinstance(point.spec.checkpoint, Patched)
        (change,) = point.spec.checkpoint.interventions
        assert isinstance(change, kind)
        assert (change.side, change.part, change.name) == ("in", "mlp", "base")
        assert change.label() == f"{name}-in-mlp-by-{change.source.label()}"
        assert parse(change.model_dump()) == change


def test_an_unknown_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"intervention\.side.*'in' or 'out'"):
        points("intervention=rotate_ablate", "intervention.side=left")


@pytest.mark.parametrize("kind", [RotateAblate, RotateRestore])
def test_checkpoints_that_take_turns_under_one_name_are_told_apart(kind: Rotation) -> None:
    assert_sources_may_take_turns(rotate(kind, SHAPE, "out", "attention").patch(SHAPE), SHAPE)
