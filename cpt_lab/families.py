"""The model families: where in a layer the roles lie, how stored names differ from transformers' own, and what config.json leaves unsaid.

One row of FAMILIES per `model_type` of config.json. A row is data: `architecture.py` reads it. Importing this module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal, get_args

from cpt_lab.names import unknown

AttentionRole = Literal["q", "k", "v", "o"]
Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
ATTENTION_ROLES: tuple[AttentionRole, ...] = get_args(AttentionRole)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Place:
    """Where a part of a role lies: a parameter of the layer, the axis that its heads (or MLP units) divide, and what it shares that with.

    `after` names the roles that stand whole before it on the axis (q, k, v one after another); `among` those that take turns head by head
    (q, k, v of head 0, then of head 1). A "vector" is divided like its matrix: a bias, a norm over the concatenated heads. What is "shared"
    belongs to the role but to no head and no unit: the bias of an output projection, a norm that all heads use.
    """

    role: Role
    parameter: str
    axis: int = 0
    after: tuple[Role, ...] = ()
    among: tuple[Role, ...] = ()
    kind: Literal["matrix", "vector", "shared"] = "matrix"


@dataclass(frozen=True)
class Switch:
    """A yes or no in config.json on which the parameters of a layer depend, and the places that it adds."""

    name: str
    places: tuple[Place, ...]
    default: bool = False


@dataclass(frozen=True)
class Family:
    """The parameters of one layer that heads and MLP matrices are made of, all others belonging to neither; and how files name them."""

    places: tuple[Place, ...]
    switches: tuple[Switch, ...] = ()
    grouped: bool = True  # whether query heads may share k and v
    prefix: str = "model."  # of the model without its output matrix: files saved from that alone lack it
    layer: str = "layers.{layer}."
    embedding: str = "embed_tokens.weight"
    renamed: Mapping[str, str] = field(default_factory=dict)  # name in files -> name in transformers
    buffers: str = r"\.rotary_emb\.inv_freq$"  # what old files hold beside the parameters
    settings: Mapping[str, str] = field(
        default_factory=dict
    )  # our name of a setting -> its name in config.json, where that is not the usual one
    defaults: Mapping[str, int | float | bool] = field(default_factory=dict)  # what a setting is where config.json is silent
    layer_vectors: int = 2  # of hidden size, in a layer, that belong to no role: norms, and their biases where they have some
    last_vectors: int = 1  # of hidden size after the last layer
    learned_positions: bool = False
    mlp_ratio: int | None = None  # MLP units per hidden unit where config.json is silent


@cache
def family(name: str) -> Family:
    """The row of a family; ValueError with the known families and what a row needs.

    `name` is a model_type and, where a checkpoint departs from the row's defaults, the switches that are on or off: "llama+attention_bias".
    """
    model_type, *changes = re.split(r"(?=[+-])", name)
    if model_type not in FAMILIES:
        raise ValueError(
            f"{unknown('model family', model_type, FAMILIES)}; a new row of FAMILIES needs, for one layer, the parameter and the axis "
            f"that the heads or units of {', '.join(ROLES)} divide (gate only if there is one), the biases and norms beside them, "
            "and the prefix of parameter names"
        )
    row = FAMILIES[model_type]
    states = {switch.name: switch.default for switch in row.switches}
    for change in changes:
        if change[1:] not in states:
            raise ValueError(f"family {name}: {unknown(f'switch of {model_type}', change[1:], states)}")
        states[change[1:]] = change[0] == "+"
    added = (place for switch in row.switches if states[switch.name] for place in switch.places)
    return replace(row, places=(*row.places, *added)) if any(states.values()) else row


def roles_of(name: str) -> tuple[Role, ...]:
    """The roles that a family has: GPT-2 and GPT-NeoX have no gate."""
    present = {place.role for place in family(name).places}
    return tuple(role for role in ROLES if role in present)


def _vector(role: Role, parameter: str) -> Place:
    return Place(role, parameter, kind="vector")


def _shared(role: Role, parameter: str) -> Place:
    return Place(role, parameter, kind="shared")


_ATTENTION = (
    Place("q", "self_attn.q_proj.weight"),
    Place("k", "self_attn.k_proj.weight"),
    Place("v", "self_attn.v_proj.weight"),
    Place("o", "self_attn.o_proj.weight", axis=1),
)
_MLP = (Place("gate", "mlp.gate_proj.weight"), Place("up", "mlp.up_proj.weight"), Place("down", "mlp.down_proj.weight", axis=1))
_QKV_BIASES = (_vector("q", "self_attn.q_proj.bias"), _vector("k", "self_attn.k_proj.bias"), _vector("v", "self_attn.v_proj.bias"))
_ATTENTION_BIAS = Switch("attention_bias", (*_QKV_BIASES, _shared("o", "self_attn.o_proj.bias")))
_MLP_BIAS = Switch(
    "mlp_bias", (_vector("gate", "mlp.gate_proj.bias"), _vector("up", "mlp.up_proj.bias"), _shared("down", "mlp.down_proj.bias"))
)
_LAYER_NORMS = (_vector("q", "self_attn.q_norm.weight"), _vector("k", "self_attn.k_norm.weight"))  # over all heads of a layer
_HEAD_NORMS = (_shared("q", "self_attn.q_norm.weight"), _shared("k", "self_attn.k_norm.weight"))  # over each head, with one weight for all

FAMILIES: dict[str, Family] = {
    "olmo2": Family((*_ATTENTION, *_LAYER_NORMS, *_MLP), (_ATTENTION_BIAS,), defaults={"norm_eps": 1e-5}),
    "olmo3": Family((*_ATTENTION, *_LAYER_NORMS, *_MLP), (_ATTENTION_BIAS,), defaults={"norm_eps": 1e-5, "rope_theta": 500000.0}),
    "llama": Family((*_ATTENTION, *_MLP), (_ATTENTION_BIAS, _MLP_BIAS)),
    "mistral": Family((*_ATTENTION, *_MLP), defaults={"num_kv_heads": 8}),
    "qwen2": Family((*_ATTENTION, *_QKV_BIASES, *_MLP), defaults={"num_kv_heads": 32}),
    "qwen3": Family((*_ATTENTION, *_HEAD_NORMS, *_MLP), (_ATTENTION_BIAS,), defaults={"num_kv_heads": 32, "head_dim": 128}),
    "gemma2": Family(
        (*_ATTENTION, *_MLP), (_ATTENTION_BIAS,), defaults={"num_kv_heads": 4, "head_dim": 256, "tied_embeddings": True}, layer_vectors=4
    ),
    "phi3": Family(
        (
            Place("q", "self_attn.qkv_proj.weight"),
            Place("k", "self_attn.qkv_proj.weight", after=("q",)),
            Place("v", "self_attn.qkv_proj.weight", after=("q", "k")),
            Place("o", "self_attn.o_proj.weight", axis=1),
            Place("gate", "mlp.gate_up_proj.weight"),
            Place("up", "mlp.gate_up_proj.weight", after=("gate",)),
            Place("down", "mlp.down_proj.weight", axis=1),
        ),
        defaults={"norm_eps": 1e-5},
    ),
    "gpt2": Family(  # its Conv1D stores matrices in x out: axes are the other way round
        (
            Place("q", "attn.c_attn.weight", axis=1),
            Place("k", "attn.c_attn.weight", axis=1, after=("q",)),
            Place("v", "attn.c_attn.weight", axis=1, after=("q", "k")),
            Place("o", "attn.c_proj.weight", axis=0),
            Place("q", "attn.c_attn.bias", kind="vector"),
            Place("k", "attn.c_attn.bias", after=("q",), kind="vector"),  # moves nothing: softmax is shift invariant
            Place("v", "attn.c_attn.bias", after=("q", "k"), kind="vector"),
            _shared("o", "attn.c_proj.bias"),
            Place("up", "mlp.c_fc.weight", axis=1),
            Place("down", "mlp.c_proj.weight", axis=0),
            _vector("up", "mlp.c_fc.bias"),
            _shared("down", "mlp.c_proj.bias"),
        ),
        grouped=False,
        prefix="transformer.",
        layer="h.{layer}.",
        embedding="wte.weight",
        buffers=r"\.attn\.(masked_)?bias$",
        settings={
            "hidden_size": "n_embd",
            "num_layers": "n_layer",
            "num_heads": "n_head",
            "mlp_size": "n_inner",
            "context": "n_positions",
            "norm_eps": "layer_norm_epsilon",
        },
        defaults={"norm_eps": 1e-5, "rope_theta": 0.0, "tied_embeddings": True},  # learned positions: no rotation
        layer_vectors=4,
        last_vectors=2,
        learned_positions=True,
        mlp_ratio=4,
    ),
    "gpt_neox": Family(  # Pythia too
        (
            *(Place(role, "attention.query_key_value.weight", among=("q", "k", "v")) for role in ATTENTION_ROLES[:3]),
            Place("o", "attention.dense.weight", axis=1),
            Place("up", "mlp.dense_h_to_4h.weight"),
            Place("down", "mlp.dense_4h_to_h.weight", axis=1),
            _vector("up", "mlp.dense_h_to_4h.bias"),
            _shared("down", "mlp.dense_4h_to_h.bias"),
        ),
        switches=(
            Switch(
                "attention_bias",
                (
                    *(Place(role, "attention.query_key_value.bias", among=("q", "k", "v"), kind="vector") for role in ATTENTION_ROLES[:3]),
                    _shared("o", "attention.dense.bias"),
                ),
                default=True,
            ),
        ),
        grouped=False,
        prefix="gpt_neox.",
        embedding="embed_in.weight",
        renamed={"embed_out.weight": "lm_head.weight"},
        buffers=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
        settings={"norm_eps": "layer_norm_eps"},
        defaults={"norm_eps": 1e-5},
        layer_vectors=4,
        last_vectors=2,
    ),
}
