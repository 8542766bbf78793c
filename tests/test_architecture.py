"""The map of heads and roles against real models of every family: who claims what, and what moves when a slice does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cpt_lab.architecture import (
    ATTENTION_ROLES,
    FAMILIES,
    ROLES,
    Slice,
    group_size,
    head_matrix,
    head_slices,
    is_transposed,
    matrix,
    role_slices,
    roles,
    shape_from_config,
)
from cpt_lab.specs import ModelShape
from factory import each_family, tiny_checkpoint, tiny_config, tiny_model, tiny_shape, tiny_shapes

SHAPES = tiny_shapes()
COUPLED = ("olmo2", "olmo3")  # families whose q and k norms run over all heads of a layer
ATTENTION, MLP = re.compile(r"\.(self_attn|attn|attention)\."), re.compile(r"\.mlp\.")
OF_NO_HEAD = re.compile(r"(o_proj|attn\.c_proj|dense)\.bias$")  # and in Qwen 3 the norms, whose weights all heads use


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


# ----------------------------------------------------------------------------------------------------- who claims what


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_the_roles_claim_every_attention_and_mlp_parameter_exactly_once(shape: ModelShape) -> None:
    slices = [part for layer in range(shape.num_layers) for role in roles(shape) for part in role_slices(shape, layer, role)]
    for parameter, count in claims(tiny_model(shape), slices).items():
        expected = 1.0 if ATTENTION.search(parameter) or MLP.search(parameter) else 0.0
        assert torch.equal(count, torch.full_like(count, expected)), parameter


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_the_heads_claim_every_attention_parameter_exactly_once_but_what_all_of_them_share(shape: ModelShape) -> None:
    for parameter, count in claims(tiny_model(shape), all_heads(shape)).items():
        shared = OF_NO_HEAD.search(parameter) or (shape.family.startswith("qwen3") and parameter.endswith("_norm.weight"))
        expected = 1.0 if ATTENTION.search(parameter) and not shared else 0.0
        assert torch.equal(count, torch.full_like(count, expected)), parameter


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_the_matrices_of_all_roles_claim_every_weight_matrix_of_a_layer_exactly_once(shape: ModelShape) -> None:
    slices = [part for layer in range(shape.num_layers) for role in roles(shape) for part in matrix(shape, layer, role)]
    for parameter, count in claims(tiny_model(shape), slices).items():
        expected = 1.0 if re.search(r"\.\d\.", parameter) and count.ndim == 2 else 0.0
        assert torch.equal(count, torch.full_like(count, expected)), parameter


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_head_matrices_are_the_two_axis_slices_of_their_head(shape: ModelShape) -> None:
    model = dict(tiny_model(shape).named_parameters())
    for head in range(shape.num_heads):
        blocks = {head_matrix(shape, 1, head, role) for role in ATTENTION_ROLES}
        assert blocks == {part for part in head_slices(shape, 1, head) if model[part.parameter].ndim == 2}
        assert {(part.stop - part.start, model[part.parameter].shape[1 - part.axis]) for part in blocks} == {
            (shape.head_dim, shape.hidden_size)
        }


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_the_matrix_of_a_role_is_that_of_its_heads_in_their_order(shape: ModelShape) -> None:
    for role in ATTENTION_ROLES:
        step = group_size(shape) if role in ("k", "v") else 1
        blocks = [head_matrix(shape, 0, head, role) for head in range(0, shape.num_heads, step)]
        whole = matrix(shape, 0, role)
        assert (whole == tuple(blocks)) if len(whole) > 1 else (whole[0].start, whole[0].stop) == (blocks[0].start, blocks[-1].stop)


def test_families_without_a_gate_have_six_roles() -> None:
    assert {family for family in FAMILIES if roles(tiny_shape(family)) != ROLES} == {"gpt2", "gpt_neox"}
    assert roles(tiny_shape("gpt2")) == ("q", "k", "v", "o", "up", "down")
    with pytest.raises(ValueError, match="unknown role of gpt2 'gate'; there are down, k, o, q, up, v"):
        matrix(tiny_shape("gpt2"), 0, "gate")


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_matrices_are_stored_out_by_in_unless_transposed(shape: ModelShape) -> None:
    model = dict(tiny_model(shape).named_parameters())
    (up,) = matrix(shape, 0, "up")
    assert (up.axis == 1) == is_transposed(shape) == (shape.family == "gpt2")
    assert view(model[up.parameter], up).shape == ((32, 48) if is_transposed(shape) else (48, 32))


# ---------------------------------------------------------------------------------------------- what moves with a slice


def projection(model: Any, shape: ModelShape) -> Any:
    """The module of layer 0 that joins the heads."""
    return model.get_submodule(head_matrix(shape, 0, 0, "o").parameter.removesuffix(".weight"))


def moved_heads(shape: ModelShape, change: Callable[[dict[str, Tensor]], None]) -> list[int]:
    """The heads whose segment of the input of o in layer 0 a change of parameters moves, in float64."""
    model = tiny_model(shape, dtype=torch.float64)
    seen: list[Tensor] = []
    projection(model, shape).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = torch.arange(2, 14).unsqueeze(0)
    with torch.no_grad():
        model(tokens)
        change(dict(model.named_parameters()))
        model(tokens)
    before, after = (values.unflatten(-1, (shape.num_heads, shape.head_dim)) for values in seen)
    moves = (after - before).abs().amax(dim=(0, 1, 3))
    return [head for head in range(shape.num_heads) if moves[head] > 1e-12]


def noise(parameters: dict[str, Tensor], slices: list[Slice]) -> None:
    generator = torch.Generator().manual_seed(1)
    for part in slices:
        block = view(parameters[part.parameter], part)
        block.add_(torch.randn(block.shape, generator=generator, dtype=block.dtype))


def before_o(shape: ModelShape, head: int, *, kv: bool) -> list[Slice]:
    """What a head has before the output projection."""
    return [part for part in head_slices(shape, 0, head, kv=kv) if part != head_matrix(shape, 0, head, "o")]


def is_coupled(shape: ModelShape) -> bool:
    return shape.family.startswith(COUPLED)


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_noise_in_the_own_slices_of_a_head_moves_that_head_alone(shape: ModelShape) -> None:
    for head in range(shape.num_heads):
        own = before_o(shape, head, kv=False)
        if is_coupled(shape):
            own = [part for part in own if "norm" in part.parameter]
        assert own
        assert moved_heads(shape, lambda parameters, own=own: noise(parameters, own)) == [head]


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_noise_in_each_slice_of_k_and_v_moves_the_heads_of_their_group_alone(shape: ModelShape) -> None:
    size = group_size(shape)
    for first in range(0, shape.num_heads, size):
        for part in sorted(set(before_o(shape, first, kv=True)) - set(before_o(shape, first, kv=False))):
            moved = moved_heads(shape, lambda parameters, part=part: noise(parameters, [part]))
            whole = is_coupled(shape) and "k_proj" in part.parameter
            is_key_bias = shape.family == "gpt2" and part.parameter.endswith("bias") and part.start < 64
            assert moved == (list(range(shape.num_heads)) if whole else [] if is_key_bias else list(range(first, first + size))), part


def test_the_key_bias_of_gpt2_moves_nothing_and_its_query_bias_does() -> None:
    shape = tiny_shape("gpt2")
    query, key, value = (part for part in head_slices(shape, 0, 1) if part.parameter.endswith("c_attn.bias"))
    moved = [moved_heads(shape, lambda parameters, part=part: noise(parameters, [part])) for part in (query, key, value)]
    assert moved == [[1], [], [1]]


@pytest.mark.parametrize("family", COUPLED)
def test_norms_over_the_layer_couple_the_heads(family: str) -> None:
    shape = tiny_shape(family)
    moved = moved_heads(shape, lambda parameters: noise(parameters, [head_matrix(shape, 0, 1, "q")]))
    assert moved == [0, 1, 2, 3]


def test_the_norms_of_qwen3_move_all_heads_and_so_belong_to_none() -> None:
    shape = tiny_shape("qwen3", num_kv_heads=2)
    for role in ("q", "k"):
        (norm,) = (part for part in role_slices(shape, 0, role) if "norm" in part.parameter)
        assert moved_heads(shape, lambda parameters, norm=norm: noise(parameters, [norm])) == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_zeros_in_the_o_block_of_a_head_take_away_that_head_alone(shape: ModelShape) -> None:
    module = projection(tiny_model(shape, dtype=torch.float64), shape)
    inputs = torch.randn(5, shape.num_heads * shape.head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        without = inputs.clone()
        without[:, shape.head_dim : 2 * shape.head_dim] = 0
        expected = module(without)
        assert not torch.allclose(module(inputs), expected, atol=1e-3)
        view(module.weight, head_matrix(shape, 0, 1, "o")).zero_()
        assert torch.allclose(module(inputs), expected, atol=1e-14)


@pytest.mark.parametrize("shape", each_family(shape for shape in SHAPES if shape.num_kv_heads == shape.num_heads), ids=name)
def test_noise_in_the_mlp_roles_moves_what_they_are_named_after(shape: ModelShape) -> None:
    """Rows of up and gate move the same units of the input of down; the first half of the units leaves the second in place."""
    model = tiny_model(shape, dtype=torch.float64)
    (down,) = matrix(shape, 0, "down")
    seen: list[Tensor] = []
    model.get_submodule(down.parameter.removesuffix(".weight")).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        model(torch.arange(2, 14).unsqueeze(0))
        for role in [role for role in roles(shape) if role in ("gate", "up")]:
            (part,) = matrix(shape, 0, role)
            noise(parameters, [Slice(part.parameter, part.axis, part.start, part.start + 24)])
            model(torch.arange(2, 14).unsqueeze(0))
            before, after = seen[-2:]
            moved = (after - before).abs().amax(dim=(0, 1)) > 1e-12
            assert moved.tolist() == [True] * 24 + [False] * 24


# --------------------------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize("shape", each_family(shape.but(tied_embeddings=tied) for shape in SHAPES for tied in (False, True)), ids=name)
def test_the_shape_of_a_checkpoint_comes_back_from_its_config(shape: ModelShape, tmp_path: Path) -> None:
    tiny_config(shape).save_pretrained(tmp_path)
    assert shape_from_config(json.loads((tmp_path / "config.json").read_text()), shape.name) == shape


@pytest.mark.parametrize("family", each_family(FAMILIES))
def test_a_config_that_says_nothing_means_what_transformers_assumes(family: str) -> None:
    from transformers import AutoConfig

    said = {"hidden_size": 512, "num_hidden_layers": 3, "num_attention_heads": 32, "intermediate_size": 96}
    context = {"vocab_size": 300, "max_position_embeddings": 32}
    if family == "gpt2":
        said, context = {"n_embd": 512, "n_layer": 3, "n_head": 32}, {"vocab_size": 300, "n_positions": 32}
    assumed = AutoConfig.for_model(family, **said, **context)
    found = shape_from_config({"model_type": family, **said, **context})
    assert found.num_kv_heads == getattr(assumed, "num_key_value_heads", 32)
    assert found.head_dim == (getattr(assumed, "head_dim", None) or 16)
    assert found.mlp_size == (2048 if family == "gpt2" else 96)
    assert found.tied_embeddings == assumed.tie_word_embeddings
    epsilons = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    assert found.norm_eps == next(getattr(assumed, one) for one in epsilons if hasattr(assumed, one))
    rope = getattr(assumed, "rope_parameters", None) or {"rope_theta": 0.0}
    assert found.rope_theta == rope.get("full_attention", rope)["rope_theta"]


def test_older_configs_state_rope_theta_and_kv_heads_their_own_way() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 300}
    shape = shape_from_config({"model_type": "llama", **sizes, "max_position_embeddings": 32, "rope_theta": 5e5})
    assert (shape.rope_theta, shape.num_kv_heads, shape.head_dim, shape.name) == (5e5, 4, 16, "llama")
    pythia = shape_from_config(
        {"model_type": "gpt_neox", **sizes, "max_position_embeddings": 32, "rotary_emb_base": 20000, "rotary_pct": 0.25}
    )
    assert (pythia.rope_theta, pythia.family) == (20000.0, "gpt_neox")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, r"unknown model family 'lama' \(did you mean llama\?\).*a new row of FAMILIES needs"),
        ({"model_type": "bert"}, "needs, for one layer, the parameter and the axis that the heads or units of q, k, v, o, gate, up, down"),
        ({"hidden_size": None}, "config.json has no hidden_size"),
    ],
)
def test_a_config_that_no_row_describes_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = json.loads((tiny_checkpoint(tmp_path) / "config.json").read_text())
    with pytest.raises(ValueError, match=message):
        shape_from_config(config | change)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (0, 4), (-1, 0)])
def test_a_head_that_does_not_exist_is_refused(layer: int, head: int) -> None:
    with pytest.raises(ValueError, match="give a layer below 2 and a head below 4"):
        head_slices(tiny_shape(), layer, head)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_families_that_share_no_k_and_v_refuse_groups(family: str) -> None:
    with pytest.raises(ValueError, match=f"{family} shares no k and v: set num_kv_heads to 4"):
        head_slices(tiny_shape(family, num_kv_heads=2), 0, 0)


def test_a_switch_that_a_family_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown switch of llama 'atention_bias' \(did you mean attention_bias\?\)"):
        head_slices(tiny_shape("llama+atention_bias"), 0, 0)
