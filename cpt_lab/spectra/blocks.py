"""The blocks that a scope has in one layer: which roles, how many, how large, by which heads. Importing this module needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cpt_lab.architecture import ATTENTION_ROLES, Role, num_blocks, roles
from cpt_lab.specs import ModelShape, Scope

WHOLE = -1  # in the column `head`: the whole matrix


def roles_in(scope: Scope, shape: ModelShape) -> tuple[Role, ...]:
    """The roles whose heads, or matrices, a scope is of."""
    return tuple(role for role in roles(shape) if (role in ATTENTION_ROLES) != (scope == "mlp"))


def heads_in(scope: Scope, shape: ModelShape, role: Role) -> tuple[int, ...]:
    """What the column `head` says of a role's blocks, in their order: query heads of q and o, key-value heads of k and v, or WHOLE."""
    return tuple(range(num_blocks(shape, role))) if scope == "heads" and role in ATTENTION_ROLES else (WHOLE,)


def count_in(scope: Scope, shape: ModelShape) -> int:
    """How many blocks a layer has."""
    return sum(len(heads_in(scope, shape, role)) for role in roles_in(scope, shape))


def size_in(scope: Scope, shape: ModelShape, role: Role) -> tuple[int, int]:
    """Dimensions of a block's two spaces: of the residual stream, and of the head, of all heads or of the MLP."""
    if role not in ATTENTION_ROLES:
        return shape.hidden_size, shape.mlp_size
    return shape.hidden_size, shape.head_dim * (1 if scope == "heads" else num_blocks(shape, role))


def block_seeds(seed: int, layer: int, role: Role, heads: Sequence[int]) -> list[int]:
    """A seed for each block, of its own: what is drawn for it depends on no other block and on no order of work."""
    digests = (hashlib.sha256(f"{seed} {layer} {role} {head}".encode()).digest() for head in heads)
    return [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]  # generators take 63 bits
