from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cpt_lab.architecture import ATTENTION_ROLES, FAMILIES, ROLES, Slice, group_size, head_matrix, head_slices, matrix, shape_from_config
from cpt_lab.specs import ModelShape
from factory import tiny_checkpoint, tiny_model, tiny_shape

SHAPES = [tiny_shape(family, num_kv_heads=kv_heads) for family in FAMILIES for kv_heads in (4, 2, 1)]
COUPLED = ("olmo2",)  # families whose q and k norms run over all heads


def name(shape: ModelShape) -> str:
    return f"{shape.family}-{shape.num_heads}of{shape.num_kv_heads}"


def view(tensor: Tensor, part: Slice) -> Tensor:
    return tensor.narrow(part.axis, part.start, part.stop - part.start)


def claims(model: Any, slices: list[Slice]) -> dict[str, Tensor]:
    counts = {parameter: torch.zeros(tensor.shape) for parameter, tensor in model.named_parameters()}
    for part in slices:
        view(counts[part.parameter], part).add_(1)
    return counts


def all_heads(shape: ModelShape) -> list[Slice]:
    """Every head once, the k and v of a group with its first head."""
    heads = [(layer, head) for layer in range(shape.num_layers) for head in range(shape.num_heads)]
    return [part for layer, head in heads for part in head_slices(shape, layer, head, kv=head % group_size(shape) == 0)]


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_heads_and_mlp_matrices_claim_every_attention_and_mlp_parameter_exactly_once(shape: ModelShape) -> None:
    mlp = [part for layer in range(shape.num_layers) for role in ("gate", "up", "down") for part in matrix(shape, layer, role)]
    for parameter, count in claims(tiny_model(shape), all_heads(shape) + mlp).items():
        expected = 1.0 if ".self_attn." in parameter or ".mlp." in parameter else 0.0
        assert torch.equal(count, torch.full_like(count, expected)), parameter


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_the_matrices_of_all_roles_claim_every_weight_matrix_of_a_layer_exactly_once(shape: ModelShape) -> None:
    slices = [part for layer in range(shape.num_layers) for role in ROLES for part in matrix(shape, layer, role)]
    for parameter, count in claims(tiny_model(shape), slices).items():
        expected = 1.0 if ".layers." in parameter and count.ndim == 2 else 0.0
        assert torch.equal(count, torch.full_like(count, expected)), parameter


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_head_matrices_are_the_two_axis_slices_of_their_head(shape: ModelShape) -> None:
    model = dict(tiny_model(shape).named_parameters())
    for head in range(shape.num_heads):
        blocks = {head_matrix(shape, 1, head, role) for role in ATTENTION_ROLES}
        assert blocks == {part for part in head_slices(shape, 1, head) if model[part.parameter].ndim == 2}


def moved_heads(shape: ModelShape, change: Callable[[dict[str, Tensor]], None]) -> list[int]:
    """The heads whose segment of the input of o in layer 0 a change of parameters moves, in float64."""
    model = tiny_model(shape, dtype=torch.float64)
    seen: list[Tensor] = []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.arange(2, 14).unsqueeze(0)
    with torch.no_grad():
        model(tokens)
        change(dict(model.named_parameters()))
        model(tokens)
    before, after = (values.unflatten(-1, (shape.num_heads, shape.head_dim)) for values in seen)
    return [head for head in range(shape.num_heads) if not torch.equal(before[:, :, head], after[:, :, head])]


def noise(parameters: dict[str, Tensor], slices: list[Slice]) -> None:
    generator = torch.Generator().manual_seed(1)
    for part in slices:
        block = view(parameters[part.parameter], part)
        block.add_(torch.randn(block.shape, generator=generator, dtype=block.dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_noise_in_the_own_slices_of_a_head_moves_that_head_alone(shape: ModelShape) -> None:
    for head in range(shape.num_heads):
        own = [part for part in head_slices(shape, 0, head, kv=False) if "o_proj" not in part.parameter]
        if shape.family in COUPLED:
            own = [part for part in own if "norm" in part.parameter]
        assert own
        assert moved_heads(shape, lambda parameters, own=own: noise(parameters, own)) == [head]


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_noise_in_shared_k_and_v_moves_the_heads_of_their_group_alone(shape: ModelShape) -> None:
    size = group_size(shape)
    for first in range(0, shape.num_heads, size):
        shared = sorted(set(head_slices(shape, 0, first)) - set(head_slices(shape, 0, first, kv=False)))
        if shape.family in COUPLED:
            shared = [part for part in shared if "k_proj" not in part.parameter]
        assert moved_heads(shape, lambda parameters, shared=shared: noise(parameters, shared)) == list(range(first, first + size))


def test_the_norms_of_olmo2_couple_the_heads() -> None:
    shape = tiny_shape("olmo2")
    moved = moved_heads(shape, lambda parameters: noise(parameters, [head_matrix(shape, 0, 1, "q")]))
    assert moved == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_zeros_in_the_o_block_of_a_head_take_away_that_head_alone(shape: ModelShape) -> None:
    projection = tiny_model(shape, dtype=torch.float64).model.layers[0].self_attn.o_proj
    inputs = torch.randn(5, shape.num_heads * shape.head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        without = inputs.clone()
        without[:, shape.head_dim : 2 * shape.head_dim] = 0
        expected = projection(without)
        view(projection.weight, head_matrix(shape, 0, 1, "o")).zero_()
        assert torch.allclose(projection(inputs), expected, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_the_shape_of_a_checkpoint_comes_back_from_its_config(shape: ModelShape, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, family=shape.family, num_kv_heads=shape.num_kv_heads)
    assert shape_from_config(json.loads((tmp_path / "config.json").read_text()), shape.name) == shape


def test_older_configs_state_rope_theta_and_kv_heads_their_own_way() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    shape = shape_from_config({"model_type": "llama", **sizes, "vocab_size": 300, "max_position_embeddings": 32, "rope_theta": 5e5})
    assert (shape.rope_theta, shape.num_kv_heads, shape.head_dim, shape.name) == (5e5, 4, 16, "llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, r"unknown model family 'lama' \(did you mean llama\?\).*a new row of FAMILIES needs"),
        ({"hidden_size": None}, "config.json has no hidden_size"),
        ({"attention_bias": True}, "attention_bias: true"),
    ],
)
def test_a_config_that_no_row_describes_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint(tmp_path) / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        shape_from_config(config | change)


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (0, 4), (-1, 0)])
def test_a_head_that_does_not_exist_is_refused(layer: int, head: int) -> None:
    with pytest.raises(ValueError, match="give a layer below 2 and a head below 4"):
        head_slices(tiny_shape(), layer, head)
