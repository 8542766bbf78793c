"""Which range of which parameter is head h, or role r, of layer l: one row of FAMILIES per model family.

The share of a head in any attention parameter is one contiguous range on one axis, so a `Slice` describes it. Roles are q, k, v, o, gate,
up and down; weights are named as transformers names them, out x in. Importing this module needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cpt_lab.names import unknown
from cpt_lab.specs import ModelShape

AttentionRole = Literal["q", "k", "v", "o"]
Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
ATTENTION_ROLES: tuple[AttentionRole, ...] = get_args(AttentionRole)
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, order=True)
class Slice:
    """The range [start, stop) of one parameter along one axis."""

    parameter: str
    axis: int
    start: int
    stop: int

    def overlaps(self, other: Slice) -> bool:
        """Whether both hold a common element; ranges on different axes of one parameter always do."""
        if self.parameter != other.parameter:
            return False
        return self.axis != other.axis or (self.start < other.stop and other.start < self.stop)


@dataclass(frozen=True)
class Place:
    """Where a role lies: a parameter of the layer, the axis that its heads (or MLP units) divide, and what stands before it there.

    `vector` marks what belongs to the role beside its matrix: biases, and norms over the concatenated heads.
    """

    role: Role
    parameter: str
    axis: int = 0
    after: tuple[Role, ...] = ()
    vector: bool = False


@dataclass(frozen=True)
class Family:
    """The parameters of one layer that heads and MLP matrices are made of; all other parameters belong to neither."""

    places: tuple[Place, ...]
    layer: str = "model.layers.{layer}."


_ATTENTION = (
    Place("q", "self_attn.q_proj.weight"),
    Place("k", "self_attn.k_proj.weight"),
    Place("v", "self_attn.v_proj.weight"),
    Place("o", "self_attn.o_proj.weight", axis=1),
)
_MLP = (Place("gate", "mlp.gate_proj.weight"), Place("up", "mlp.up_proj.weight"), Place("down", "mlp.down_proj.weight", axis=1))
_QK_NORMS = (Place("q", "self_attn.q_norm.weight", vector=True), Place("k", "self_attn.k_norm.weight", vector=True))
_QKV_BIASES = (
    Place("q", "self_attn.q_proj.bias", vector=True),
    Place("k", "self_attn.k_proj.bias", vector=True),
    Place("v", "self_attn.v_proj.bias", vector=True),
)
_FUSED = (
    Place("q", "self_attn.qkv_proj.weight"),
    Place("k", "self_attn.qkv_proj.weight", after=("q",)),
    Place("v", "self_attn.qkv_proj.weight", after=("q", "k")),
    Place("o", "self_attn.o_proj.weight", axis=1),
    Place("gate", "mlp.gate_up_proj.weight"),
    Place("up", "mlp.gate_up_proj.weight", after=("gate",)),
    Place("down", "mlp.down_proj.weight", axis=1),
)

FAMILIES: dict[str, Family] = {
    "olmo2": Family((*_ATTENTION, *_QK_NORMS, *_MLP)),
    "llama": Family((*_ATTENTION, *_MLP)),
    "mistral": Family((*_ATTENTION, *_MLP)),
    "qwen2": Family((*_ATTENTION, *_QKV_BIASES, *_MLP)),
    "phi3": Family(_FUSED),
}


def family(name: str) -> Family:
    """The row of a family; ValueError with the known families and what a row needs."""
    if name not in FAMILIES:
        raise ValueError(
            f"{unknown('model family', name, FAMILIES)}; a new row of FAMILIES needs the places of {', '.join(ROLES)} in a layer"
        )
    return FAMILIES[name]


def head_slices(shape: ModelShape, layer: int, head: int, *, kv: bool = True) -> tuple[Slice, ...]:
    """All that belongs to one query head: q, o and their vectors, and with `kv` the k and v of its group and theirs (P eq. 15).

    In OLMo 2 the RMS of q_norm and k_norm runs over all heads of a layer, so a change of one head's q or k moves the others a little.
    """
    _check(shape, layer, head)
    places = (place for place in family(shape.family).places if place.role in ATTENTION_ROLES)
    return tuple(_head_slice(shape, layer, head, place) for place in places if kv or place.role in ("q", "o"))


def head_matrix(shape: ModelShape, layer: int, head: int, role: AttentionRole) -> Slice:
    """The block of one head in the matrix of a role: head_dim x hidden_size for q, k, v; hidden_size x head_dim for o."""
    _check(shape, layer, head)
    return _head_slice(shape, layer, head, _matrix_place(shape, role))


def group(shape: ModelShape, head: int) -> int:
    """The key-value head that a query head uses."""
    return head // group_size(shape)


def group_size(shape: ModelShape) -> int:
    """How many query heads share one key-value head; 1 is multi-head attention."""
    return shape.num_heads // shape.num_kv_heads


def num_blocks(shape: ModelShape, role: AttentionRole) -> int:
    """How many heads divide the matrix of a role: query heads for q and o, key-value heads for k and v."""
    return shape.num_kv_heads if role in ("k", "v") else shape.num_heads


def matrix(shape: ModelShape, layer: int, role: Role) -> tuple[Slice, ...]:
    """The whole matrix of a role, as slices to be joined along their axis."""
    _check(shape, layer, 0)
    place = _matrix_place(shape, role)
    return (_slice(shape, layer, place, 0, _width(shape, role)),)


def shape_from_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape that a Hugging Face config.json states; ValueError for an unknown family, a missing size or a bias that no row has."""
    model_type = str(config.get("model_type", ""))
    family(model_type)
    for switch in ("attention_bias", "mlp_bias"):
        if config.get(switch):
            raise ValueError(
                f"config.json of a {model_type} has {switch}: true, which its row of FAMILIES does not know: add a row with the biases"
            )
    heads = _size(config, "num_attention_heads")
    rope = config.get("rope_parameters") or config
    return ModelShape(
        name=name or str(config.get("_name_or_path") or model_type),
        family=model_type,
        hidden_size=_size(config, "hidden_size"),
        num_layers=_size(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or _size(config, "hidden_size") // heads,
        mlp_size=_size(config, "intermediate_size"),
        vocab_size=_size(config, "vocab_size"),
        context=_size(config, "max_position_embeddings"),
        rope_theta=rope.get("rope_theta", 10000.0),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def _size(config: Mapping[str, Any], name: str) -> int:
    if not isinstance(config.get(name), int):
        raise ValueError(f"config.json has no {name}: give the folder of a model in Hugging Face format")
    return int(config[name])


def _check(shape: ModelShape, layer: int, head: int) -> None:
    if not (0 <= layer < shape.num_layers and 0 <= head < shape.num_heads):
        raise ValueError(
            f"no head {head} in layer {layer} of {shape.name}: give a layer below {shape.num_layers} and a head below {shape.num_heads}"
        )


def _matrix_place(shape: ModelShape, role: Role) -> Place:
    places = {place.role: place for place in family(shape.family).places if not place.vector}
    if role not in places:
        raise ValueError(unknown("role", role, places))
    return places[role]


def _head_slice(shape: ModelShape, layer: int, head: int, place: Place) -> Slice:
    index = group(shape, head) if place.role in ("k", "v") else head
    return _slice(shape, layer, place, index * shape.head_dim, shape.head_dim)


def _slice(shape: ModelShape, layer: int, place: Place, start: int, length: int) -> Slice:
    start += sum(_width(shape, role) for role in place.after)
    prefix = family(shape.family).layer.format(layer=layer)
    return Slice(prefix + place.parameter, place.axis, start, start + length)


def _width(shape: ModelShape, role: Role) -> int:
    """Length of the axis that a role's heads, or MLP units, divide."""
    if role in ATTENTION_ROLES:
        return shape.head_dim * (shape.num_kv_heads if role in ("k", "v") else shape.num_heads)
    return shape.mlp_size
