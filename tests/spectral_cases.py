"""What tests of singular values and vectors share: random models, and where their matrices lie, written down once more by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cpt_lab.patch import LiveModel, Patch, apply
from cpt_lab.specs import ModelShape
from factory import tiny_model, tiny_shape

Array = npt.NDArray[np.float64]
Place = tuple[str, str, Any]  # role, parameter, index of the matrix in it
Decomposed = tuple[Array, Array, Array]

NAMES = ("tuned", "base", "reference")
BY_HAND = [
    tiny_shape("olmo2"),
    tiny_shape("llama", num_kv_heads=2),
    tiny_shape("gemma2", num_kv_heads=1),
    tiny_shape("phi3", num_kv_heads=2),
    tiny_shape("gpt2"),
    tiny_shape("gpt_neox"),
]


def title(shape: ModelShape) -> str:
    return f"{shape.family}-{shape.num_heads}of{shape.num_kv_heads}"


@cache
def checkpoints(shape: ModelShape) -> dict[str, dict[str, Tensor]]:
    """Three unlike random checkpoints of a shape; no test may change them."""
    return {name: weights_of(tiny_model(shape, seed=seed)) for seed, name in enumerate(NAMES)}


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def patched(patch: Patch, shape: ModelShape) -> dict[str, Tensor]:
    """The tuned checkpoint under a patch."""
    weights = checkpoints(shape)
    return dict(apply(patch, weights["tuned"], weights))


def live(shape: ModelShape) -> LiveModel:
    weights = checkpoints(shape)
    return LiveModel(tiny_model(shape, seed=0), weights["tuned"], {name: weights[name] for name in NAMES})


def bits(model: LiveModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights_of(model.model).items()}


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Array], *, atol: float = 3e-6) -> None:
    assert set(found) == set(expected)
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor.double().numpy(), expected[name], rtol=0, atol=atol, err_msg=name)


def arrays(weights: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.double().numpy().copy() for name, tensor in weights.items()}


def assert_sources_may_take_turns(patch: Patch, shape: ModelShape) -> None:
    """Two checkpoints that are called base in turn are not mixed up, though what follows from them is remembered."""
    weights, model = checkpoints(shape), live(shape)
    for meant in ("base", "reference", "base"):
        sources = {**weights, "base": weights[meant]}
        model.read_from(sources)
        model.set(patch)
        assert same_bits(bits(model), dict(apply(patch, weights["tuned"], sources)))


def assert_lives_as_it_is_mapped(patches: list[Patch], shape: ModelShape) -> None:
    """In place and as a mapping patches give the same bits, one after another, and the model's own come back."""
    model = live(shape)
    for patch in patches:
        model.set(patch)
        assert same_bits(bits(model), patched(patch, shape))
        assert Patch.model_validate_json(patch.model_dump_json()) == patch
    model.reset()
    assert same_bits(bits(model), checkpoints(shape)["tuned"])


# ----------------------------------------------------------------------------------------------- where the matrices lie


def blocks(shape: ModelShape) -> Iterator[Place]:
    """Every head's block of q, k, v, o, that of a shared k or v once, and every MLP matrix."""
    for layer in range(shape.num_layers):
        for role, count in (("q", shape.num_heads), ("k", shape.num_kv_heads), ("v", shape.num_kv_heads), ("o", shape.num_heads)):
            for head in range(count):
                parameter, axis, start = _start(shape, role, head)
                rows = slice(start, start + shape.head_dim)
                yield role, name(shape, layer, parameter), (rows,) if axis == 0 else (slice(None), rows)
        yield from (place for place in wholes(shape, layer) if place[0] in ("gate", "up", "down"))


def wholes(shape: ModelShape, layer: int) -> Iterator[Place]:
    """Every whole matrix of a layer."""
    for role, count in (("q", shape.num_heads), ("k", shape.num_kv_heads), ("v", shape.num_kv_heads), ("o", shape.num_heads)):
        starts = [_start(shape, role, head) for head in range(count)]
        rows = np.concatenate([np.arange(start, start + shape.head_dim) for _, _, start in starts])
        yield role, name(shape, layer, starts[0][0]), (rows,) if starts[0][1] == 0 else (slice(None), rows)
    mlp: dict[str, tuple[str, Any]]
    match shape.family:
        case "gpt2":
            mlp = {"up": ("mlp.c_fc", ...), "down": ("mlp.c_proj", ...)}
        case "gpt_neox":
            mlp = {"up": ("mlp.dense_h_to_4h", ...), "down": ("mlp.dense_4h_to_h", ...)}
        case "phi3":
            gate, up = slice(0, shape.mlp_size), slice(shape.mlp_size, None)
            mlp = {"gate": ("mlp.gate_up_proj", gate), "up": ("mlp.gate_up_proj", up), "down": ("mlp.down_proj", ...)}
        case _:
            mlp = {role: (f"mlp.{role}_proj", ...) for role in ("gate", "up", "down")}
    yield from ((role, name(shape, layer, parameter), index) for role, (parameter, index) in mlp.items())


def name(shape: ModelShape, layer: int, parameter: str) -> str:
    prefix = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}.get(shape.family, "model.layers")
    return f"{prefix}.{layer}.{parameter}.weight"


def _start(shape: ModelShape, role: str, head: int) -> tuple[str, int, int]:
    """Parameter, axis and first index of a head's block."""
    d, heads, groups = shape.head_dim, shape.num_heads, shape.num_kv_heads
    third = "qkv".find(role)
    match shape.family:
        case "gpt2":
            return ("attn.c_proj", 0, head * d) if role == "o" else ("attn.c_attn", 1, third * heads * d + head * d)
        case "gpt_neox":
            return ("attention.dense", 1, head * d) if role == "o" else ("attention.query_key_value", 0, (3 * head + third) * d)
        case "phi3" if role != "o":
            return "self_attn.qkv_proj", 0, {"q": 0, "k": heads, "v": heads + groups}[role] * d + head * d
        case _:
            return f"self_attn.{role}_proj", int(role == "o"), head * d


# -------------------------------------------------------------------------------------------------------------- oracles


def changed_by_hand(
    shape: ModelShape, places: Iterator[Place], new: Callable[[Array, Array], Array], *, source: str = "base"
) -> dict[str, Array]:
    """The tuned checkpoint with `new(tuned matrix, source's matrix)` at the given places, in float64, one matrix after another."""
    tuned, other = arrays(checkpoints(shape)["tuned"]), arrays(checkpoints(shape)[source])
    result = {parameter: values.copy() for parameter, values in tuned.items()}
    for _, parameter, index in places:
        result[parameter][index] = new(tuned[parameter][index], other[parameter][index])
    return result


def svd(matrix: Array) -> Decomposed:
    """U, s, V with W = U diag(s) V^T."""
    left, singular, right = np.linalg.svd(matrix, full_matrices=False)
    return left, singular, right.T
