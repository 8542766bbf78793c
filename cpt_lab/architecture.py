"""Which range of which parameter is head h, or role r, of layer l, for every row of FAMILIES; and what a config.json says of all this.

The share of a head in any attention parameter is one contiguous range on one axis, so a `Slice` describes it. Roles are q, k, v, o, gate,
up and down; parameters are named as transformers names them. Importing this module needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cpt_lab.families import ATTENTION_ROLES, FAMILIES, ROLES, AttentionRole, Family, Place, Role, family, roles_of
from cpt_lab.names import unknown
from cpt_lab.specs import ModelShape

__all__ = [
    "ATTENTION_ROLES",
    "FAMILIES",
    "ROLES",
    "AttentionRole",
    "Role",
    "Slice",
    "group",
    "group_size",
    "head_matrix",
    "head_slices",
    "is_transposed",
    "matrix",
    "num_blocks",
    "parameter_names",
    "role_slices",
    "roles",
    "shape_from_config",
]

OUTPUT = "lm_head.weight"  # the output matrix, an alias of the embedding where the two are tied
USUAL_SETTINGS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
}
ROPE_THETAS = ("rope_theta", "rotary_emb_base")  # as it is called now, and in older files of GPT-NeoX


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


def head_slices(shape: ModelShape, layer: int, head: int, *, kv: bool = True) -> tuple[Slice, ...]:
    """All that belongs to one query head: q, o and their vectors, and with `kv` the k and v of its group and theirs (P eq. 15).

    In OLMo 2 and 3 the RMS of q_norm and k_norm runs over all heads of a layer, so a change of one head's q or k moves the others a little.
    The bias of the output projection and the norms of Qwen 3, whose weights all heads of a layer use, belong to no head.
    """
    _check(shape, layer, head)
    own = (place for place in family(shape.family).places if place.role in ATTENTION_ROLES and place.kind != "shared")
    return tuple(_head_slice(shape, layer, head, place) for place in own if kv or place.role in ("q", "o"))


def head_matrix(shape: ModelShape, layer: int, head: int, role: AttentionRole) -> Slice:
    """The block of one head in the matrix of a role: its axis is the head's, of length head_dim, the other one is hidden_size.

    As stored the block is head_dim x hidden_size for q, k, v and hidden_size x head_dim for o; in GPT-2 the other way round.
    """
    _check(shape, layer, head)
    return _head_slice(shape, layer, head, _matrix_place(shape, role))


def matrix(shape: ModelShape, layer: int, role: Role) -> tuple[Slice, ...]:
    """The whole matrix of a role, as slices to be joined along their axis in this order: the heads' own order."""
    _check(shape, layer, 0)
    return _whole(shape, layer, _matrix_place(shape, role))


def role_slices(shape: ModelShape, layer: int, role: Role) -> tuple[Slice, ...]:
    """All that belongs to a role: its matrix, its biases and norms, those too that belong to none of its heads."""
    _check(shape, layer, 0)
    _matrix_place(shape, role)
    places = (place for place in family(shape.family).places if place.role == role)
    return tuple(part for place in places for part in _whole(shape, layer, place))


def roles(shape: ModelShape) -> tuple[Role, ...]:
    """The roles of the model's family: GPT-2 and GPT-NeoX have no gate."""
    return roles_of(shape.family)


def is_transposed(shape: ModelShape) -> bool:
    """Whether matrices are stored in x out, as in GPT-2, and not out x in."""
    return _matrix_place(shape, "q").axis == 1


def group(shape: ModelShape, head: int) -> int:
    """The key-value head that a query head uses."""
    return head // group_size(shape)


def group_size(shape: ModelShape) -> int:
    """How many query heads share one key-value head; 1 is multi-head attention."""
    return shape.num_heads // shape.num_kv_heads


def num_blocks(shape: ModelShape, role: AttentionRole) -> int:
    """How many heads divide the matrix of a role: query heads for q and o, key-value heads for k and v."""
    return shape.num_kv_heads if role in ("k", "v") else shape.num_heads


def shape_from_config(config: Mapping[str, Any], name: str = "") -> ModelShape:
    """The shape that a Hugging Face config.json states; what it leaves unsaid is what transformers assumes for the family.

    ValueError for an unknown family or a missing size. Switches that are not at the family's default become part of its name, as in
    "llama+attention_bias".
    """
    model_type = str(config.get("model_type", ""))
    row = family(model_type)
    heads, hidden_size = _size(config, row, "num_heads"), _size(config, row, "hidden_size")
    return ModelShape(
        name=name or str(config.get("_name_or_path") or model_type),
        family=model_type + _switches(config, model_type),
        hidden_size=hidden_size,
        num_layers=_size(config, row, "num_layers"),
        num_heads=heads,
        num_kv_heads=_setting(config, row, "num_kv_heads", heads) if row.grouped else heads,
        head_dim=_setting(config, row, "head_dim", hidden_size // heads) if row.grouped else hidden_size // heads,
        mlp_size=_size(config, row, "mlp_size", row.mlp_ratio and row.mlp_ratio * hidden_size),
        vocab_size=_size(config, row, "vocab_size"),
        context=_size(config, row, "context"),
        rope_theta=_rope_theta(config, row),
        norm_eps=_setting(config, row, "norm_eps", 1e-6),
        tied_embeddings=_is_tied(config, row),
    )


def parameter_names(stored: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Name in the files -> name in transformers' model, for all that is a parameter of it; its own name comes last where it has two.

    Files of GPT-2 may lack the prefix of the model, those of Pythia call the output matrix embed_out, old ones hold masks and frequencies.
    With tied embeddings the output matrix is the input embedding under another name.
    """
    files = tuple(stored)
    model_type = str(config.get("model_type", ""))
    row = FAMILIES.get(model_type, Family(()))
    bare = model_type in FAMILIES and not any(file.startswith(row.prefix) for file in files)
    names = {file: row.renamed.get(file, file) for file in files}
    names = {file: row.prefix + name if bare and name != OUTPUT else name for file, name in names.items()}
    names = {file: name for file, name in names.items() if not re.search(row.buffers, name)}
    embedding = row.prefix + row.embedding
    if _is_tied(config, row) and embedding in names.values():
        aliases = {file: embedding for file, name in names.items() if name == OUTPUT}
        names = aliases | {file: name for file, name in names.items() if file not in aliases}
    return names


# -------------------------------------------------------------------------------------------------------------- slices


def _check(shape: ModelShape, layer: int, head: int) -> None:
    if not (0 <= layer < shape.num_layers and 0 <= head < shape.num_heads):
        raise ValueError(
            f"no head {head} in layer {layer} of {shape.name}: give a layer below {shape.num_layers} and a head below {shape.num_heads}"
        )
    if group_size(shape) > 1 and not family(shape.family).grouped:
        raise ValueError(
            f"{shape.name} has {shape.num_kv_heads} kv heads for {shape.num_heads} heads, but {shape.family} shares no k and v: "
            f"set num_kv_heads to {shape.num_heads}"
        )


def _matrix_place(shape: ModelShape, role: Role) -> Place:
    for place in family(shape.family).places:
        if place.role == role and place.kind == "matrix":
            return place
    raise ValueError(unknown(f"role of {shape.family}", role, roles(shape)))


def _head_slice(shape: ModelShape, layer: int, head: int, place: Place) -> Slice:
    return _block(shape, layer, place, group(shape, head) if place.role in ("k", "v") else head)


def _whole(shape: ModelShape, layer: int, place: Place) -> tuple[Slice, ...]:
    if place.among:
        return tuple(_block(shape, layer, place, index) for index in range(_width(shape, place) // shape.head_dim))
    return (_slice(shape, layer, place, 0, _width(shape, place)),)


def _block(shape: ModelShape, layer: int, place: Place, index: int) -> Slice:
    """The share of one query or key-value head."""
    turn = index * len(place.among) + place.among.index(place.role) if place.among else index
    return _slice(shape, layer, place, turn * shape.head_dim, shape.head_dim)


def _slice(shape: ModelShape, layer: int, place: Place, start: int, length: int) -> Slice:
    row = family(shape.family)
    start += sum(_role_width(shape, role) for role in place.after)
    return Slice(row.prefix + row.layer.format(layer=layer) + place.parameter, place.axis, start, start + length)


def _width(shape: ModelShape, place: Place) -> int:
    """Length of a place along its axis."""
    if place.kind == "shared":
        return shape.hidden_size if place.role in ("o", "down") else shape.head_dim
    return _role_width(shape, place.role)


def _role_width(shape: ModelShape, role: Role) -> int:
    """Length of the axis that a role's heads, or MLP units, divide."""
    if role in ATTENTION_ROLES:
        return shape.head_dim * num_blocks(shape, role)
    return shape.mlp_size


# --------------------------------------------------------------------------------------------------------- config.json


def _setting(config: Mapping[str, Any], row: Family, name: str, default: Any = None) -> Any:
    """A setting of config.json by our name for it, else the family's default, else the given one; null counts as unsaid."""
    found = config.get(row.settings.get(name, USUAL_SETTINGS[name]))
    return found if found is not None else row.defaults.get(name, default)


def _size(config: Mapping[str, Any], row: Family, name: str, default: int | None = None) -> int:
    found = _setting(config, row, name, default)
    if not isinstance(found, int):
        said = row.settings.get(name, USUAL_SETTINGS[name])
        raise ValueError(f"config.json has no {said}: give the folder of a model in Hugging Face format")
    return found


def _is_tied(config: Mapping[str, Any], row: Family) -> bool:
    return bool(_setting(config, row, "tied_embeddings", False))


def _switches(config: Mapping[str, Any], model_type: str) -> str:
    states = ((switch, bool(config.get(switch.name, switch.default))) for switch in FAMILIES[model_type].switches)
    return "".join(f"{'+' if on else '-'}{switch.name}" for switch, on in states if on != switch.default)


def _rope_theta(config: Mapping[str, Any], row: Family) -> float:
    """OLMo 3 has one for its sliding and one for its full attention: the latter's counts, in released models they are equal."""
    rope = config.get("rope_parameters") or {}
    places = (rope, rope.get("full_attention") or {}, config)
    found = (place[name] for place in places for name in ROPE_THETAS if place.get(name) is not None)
    return float(next(found, row.defaults.get("rope_theta", 10000.0)))
