from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compositions import points
from cpt_lab.interventions import parse
from cpt_lab.interventions.scale_transplant import TABLE, ScaleTransplant, ScaleTransplantSettings
from cpt_lab.patch import apply
from cpt_lab.specs import Checkpoint, Evaluation, HubCheckpoint, ModelShape, Patched, Ranking
from factory import each_family, folder_spec, tiny_shape, tiny_shapes
from spectral_cases import (
    BY_HAND,
    Array,
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

SHAPE = tiny_shape(num_kv_heads=2)
ALPHA = {"q": 0.9, "k": 0.8, "v": 1.0, "o": 1.4, "gate": 0.5, "up": 1.1, "down": 2.0}


def roles_of(shape: ModelShape) -> Any:
    return tuple(dict.fromkeys(role for role, _, _ in wholes(shape, 0)))


def scaled(shape: ModelShape) -> ScaleTransplant:
    roles = roles_of(shape)
    return ScaleTransplant(base=folder_spec(Path("base"), shape), roles=roles, alpha=tuple(ALPHA[role] for role in roles))


def measured(shape: ModelShape) -> ScaleTransplant:
    return ScaleTransplant(
        base=folder_spec(Path("base"), shape), roles=roles_of(shape), alpha=None, tuned=folder_spec(Path("tuned"), shape)
    )


def by_hand(tuned: Array, base: Array, alpha: float) -> Array:
    left, _, right = svd(tuned)
    _, singular, _ = svd(base)
    result: Array = (left * alpha * singular) @ right.T
    return result


def expected(shape: ModelShape, alpha: dict[str, float]) -> dict[str, Array]:
    places = [place for layer in range(shape.num_layers) for place in wholes(shape, layer)]
    result: dict[str, Array] = arrays(checkpoints(shape)["tuned"])
    for role in dict.fromkeys(role for role, _, _ in places):
        own = [place for place in places if place[0] == role]
        changed = changed_by_hand(shape, iter(own), lambda tuned, base, role=role: by_hand(tuned, base, alpha[role]))  # type: ignore[misc]
        for _, parameter, index in own:
            result[parameter][index] = changed[parameter][index]
    return result


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
def test_each_whole_matrix_takes_alpha_times_the_bases_singular_values(shape: ModelShape) -> None:
    assert_close(patched(scaled(shape).patch(shape), shape), expected(shape, ALPHA))


@pytest.mark.parametrize("shape", BY_HAND, ids=title)
def test_a_measured_alpha_is_the_mean_over_layers_of_the_top_nine_tenths_rounded_to_a_tenth(shape: ModelShape) -> None:
    tuned, base = arrays(checkpoints(shape)["tuned"]), arrays(checkpoints(shape)["base"])
    ratios: dict[str, list[float]] = {}
    for layer in range(shape.num_layers):
        for role, parameter, index in wholes(shape, layer):
            ours, theirs = svd(tuned[parameter][index])[1], svd(base[parameter][index])[1]
            ratios.setdefault(role, []).extend((ours / theirs)[: len(ours) * 9 // 10])
    alpha = {role: round(float(np.mean(values)), 1) for role, values in ratios.items()}
    assert_close(patched(measured(shape).patch(shape), shape), expected(shape, alpha))


def test_measured_alpha_of_a_scaled_base_is_its_scale_and_gives_the_tuned_weights_back() -> None:
    tuned = checkpoints(SHAPE)["tuned"]
    base = {name: tensor / 1.4 for name, tensor in tuned.items()}
    found = apply(measured(SHAPE).patch(SHAPE), tuned, {"base": base, "tuned": tuned})
    assert_close(dict(found), arrays(tuned), atol=1e-6)


@pytest.mark.parametrize("shape", each_family(tiny_shapes(kv_heads=(4, 2))), ids=title)
def test_alpha_of_one_and_the_checkpoint_itself_is_the_identity_to_rounding(shape: ModelShape) -> None:
    change = ScaleTransplant(base=folder_spec(Path("base"), shape), roles=("q", "k", "v", "o", "up"), alpha=(1.0,) * 5)
    tuned = checkpoints(shape)["tuned"]
    assert_close(dict(apply(change.patch(shape), tuned, {"base": tuned})), arrays(tuned), atol=1e-6)


def test_the_bits_are_the_same_in_place_and_the_models_own_come_back() -> None:
    for shape in BY_HAND:
        assert_lives_as_it_is_mapped([scaled(shape).patch(shape), measured(shape).patch(shape)], shape)


def test_a_base_in_bfloat16_gives_its_values_to_a_float32_model() -> None:
    half = {name: tensor.bfloat16() for name, tensor in checkpoints(SHAPE)["base"].items()}
    single = {name: tensor.float() for name, tensor in half.items()}
    tuned, patch = checkpoints(SHAPE)["tuned"], scaled(SHAPE).patch(SHAPE)
    found = apply(patch, tuned, {"base": half})["model.layers.0.mlp.up_proj.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, apply(patch, tuned, {"base": single})["model.layers.0.mlp.up_proj.weight"])


def test_no_scale_can_be_measured_against_a_base_of_zeros() -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in checkpoints(SHAPE)["base"].items()}
    found = apply(measured(SHAPE).patch(SHAPE), checkpoints(SHAPE)["tuned"], {**checkpoints(SHAPE), "base": zeros})
    with pytest.raises(ValueError, match="no scale can be measured: give"):
        found["model.layers.0.mlp.up_proj.weight"]


class Given:
    """Choices with a tuned checkpoint of the hub."""

    def __init__(self, tuned: str) -> None:
        self._tuned = tuned

    def checkpoint(self, name: str) -> Checkpoint:
        return HubCheckpoint(id=self._tuned if name == "tuned" else "base", revision="main", shape=SHAPE)

    def ranking(self, direction: str) -> Ranking:
        raise AssertionError(direction)


def chosen(tuned: str = "any/model", **given: Any) -> ScaleTransplant:
    return ScaleTransplant.chosen(ScaleTransplantSettings.model_validate({"alpha": "table", "roles": "all", **given}), Given(tuned))


@pytest.mark.parametrize(
    ("tuned", "of_output", "of_others"),
    [
        ("Qwen/Qwen2.5-Math-1.5B-Instruct", 0.9, 0.9),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 1.4, 1.0),
        ("meta-llama/Llama-3.1-8B-Instruct", 1.0, 1.0),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 1.4, 1.0),
    ],
)
def test_the_table_knows_the_models_of_its_paper(tuned: str, of_output: float, of_others: float) -> None:
    change = chosen(tuned)
    assert change.alpha == tuple(of_output if role == "o" else of_others for role in change.roles)
    assert len(TABLE) == 8


def test_alpha_follows_the_roles_whatever_the_order_it_is_given_in() -> None:
    change = chosen(roles=["o", "q"], alpha={"o": 1.4, "q": 1})
    assert dict(zip(change.roles, change.alpha or (), strict=True)) == {"q": 1.0, "o": 1.4}
    assert chosen(alpha="measured").sources().keys() == {"base", "tuned"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"unknown model 'model'; there are DeepSeek.*set intervention\.alpha=measured"),
        ({"alpha": {"q": 0.9}}, r"intervention\.alpha has no value for k, v, o, gate, up, down: give one"),
        ({"alpha": {"q": 0.9, "z": 1}, "roles": ["q"]}, r"unknown role in intervention\.alpha 'z'; there are q"),
        ({"alpha": {"q": 0}}, "got 0 for q, allowed is a number above 0"),
        ({"alpha": {"q": "1"}}, "got '1' for q, allowed is a number above 0"),
        ({"alpha": 0.9}, r"got 0\.9, allowed are table, measured and one number per role"),
    ],
)
def test_wrong_alphas_are_told_in_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(**given)


@pytest.mark.slow
def test_the_configuration_takes_a_word_or_a_number_per_role() -> None:
    changes = []
    for words in (("intervention.alpha=measured",), ("intervention.roles=[q,o]", "intervention.alpha={q: 0.9, o: 1.4}")):
        (point,) = points("intervention=scale_transplant", *words)
        assert isinstance(point.spec, Evaluation)
        assert isinstance(point.spec.checkpoint, Patched)
        (change,) = point.spec.checkpoint.interventions
        assert isinstance(change, ScaleTransplant)
        assert parse(change.model_dump()) == change
        changes.append(change)
    assert [change.alpha for change in changes] == [None, (0.9, 1.4)]
    assert [change.label() for change in changes] == ["scale_transplant-measured", "scale_transplant-0.9-1.4"]


@pytest.mark.parametrize("settings", [scaled, measured])
def test_checkpoints_that_take_turns_under_one_name_are_told_apart(settings: Any) -> None:
    assert_sources_may_take_turns(settings(SHAPE).patch(SHAPE), SHAPE)
