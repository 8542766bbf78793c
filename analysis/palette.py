"""Colours by meaning, the same in every figure; a dash and a marker of each tell them apart in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.drawing import Dash, Look

INK, FAINT = "#222222", "#6E6E6E"
SEQUENTIAL, DIVERGING = ("viridis", "Viridis"), ("RdBu_r", "RdBu_r")  # matplotlib's and plotly's names of one scale

# Colours that colour-blind people tell apart; markers are matplotlib's names.
CRITERIA: dict[str, Look] = {
    "scaled_norm_diff": Look("#0072B2", marker="o"),
    "delta_norm": Look("#D55E00", marker="s"),
    "greedy": Look("#009E73", marker="^"),
    "agreement_diff": Look("#A0468C", marker="D"),
    "agreement": Look("#56B4E9", marker="v"),
    "pl_ks": Look("#B8860B", marker="P"),
    "pl_alpha": Look("#7A4A1E", marker="X"),
    "random": Look("#6E6E6E", marker="*"),
}
ROLES: dict[str, Look] = {  # of checkpoints
    "base": Look("#6E6E6E", "dotted", "s"),
    "tuned": Look("#0072B2", "solid", "o"),
    "reference": Look("#009E73", "dashed", "^"),
    "soup": Look("#A0468C", "solid", "D"),
    "edited": Look("#D55E00", "dashed", "v"),
}
DOMAINS: dict[str, Look] = {
    "math": Look("#0072B2", "solid", "o"),
    "text": Look("#009E73", "dashed", "^"),
    "inst": Look("#A0468C", "dotted", "D"),
    "code": Look("#D55E00", "dashed", "s"),
}
MATRICES: dict[str, Look] = {
    "q": Look("#0072B2", "solid", "o"),
    "k": Look("#56B4E9", "dashed", "v"),
    "v": Look("#009E73", "solid", "^"),
    "o": Look("#D55E00", "dashed", "s"),
    "gate": Look("#A0468C", "solid", "D"),
    "up": Look("#B8860B", "dashed", "P"),
    "down": Look("#7A4A1E", "dotted", "X"),
}
OTHERS = (
    Look("#332288", marker="h"),
    Look("#117733", "dashed", "p"),
    Look("#882255", "dotted", "<"),
    Look("#0072B2", marker="o"),
    Look("#D55E00", "dashed", "s"),
    Look("#009E73", "dotted", "^"),
    Look("#B8860B", marker="P"),
    Look("#56B4E9", "dashed", "v"),
)
BLUE, MIDDLE, RED = (0x21, 0x4F, 0xC6), (0x8A, 0x5A, 0x9E), (0xC6, 0x21, 0x2B)  # of the first, middle and last layer


def directed(look: Look, direction: str) -> Look:
    """The look of a criterion in one direction: descending orders are dashed, with hollow markers."""
    return replace(look, dash="dashed", filled=False) if direction == "descending" else replace(look, dash="solid")


def series(names: Sequence[str], known: dict[str, Look] | None = None) -> dict[str, Look]:
    """A look per name: the known ones their own, the others one each of `OTHERS` in their order."""
    fixed = {name: look for name, look in (known or {}).items() if name in names}
    taken = {look.colour for look in fixed.values()}
    free = [look for look in OTHERS if look.colour not in taken] or list(OTHERS)
    rest = [name for name in dict.fromkeys(names) if name not in fixed]
    dashes: tuple[Dash, ...] = ("solid", "dashed", "dotted")
    return fixed | {
        name: replace(free[index % len(free)], dash=dashes[(index // len(free)) % 3]) if index >= len(free) else free[index]
        for index, name in enumerate(rest)
    }


def layer_colour(layer: int, num_layers: int) -> str:
    """From blue (the first layer) to red (the last), through a violet that is darker than neither in grey."""
    share = layer / max(1, num_layers - 1)
    start, end = (BLUE, MIDDLE) if share <= 0.5 else (MIDDLE, RED)
    part = 2 * share if share <= 0.5 else 2 * share - 1
    return "#" + "".join(f"{round(low + part * (high - low)):02X}" for low, high in zip(start, end, strict=True))
