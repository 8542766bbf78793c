"""Tokens of many texts that begin alike: what they share is encoded once, and the tokens are those of the whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORTH_SHARING = 200  # characters; shorter beginnings are encoded with every text
LEFT_OVER = 3  # pieces of the shared beginning that stay with every text, so that what is cut off looks at nothing behind it
AT_ONCE = 1024  # texts


def encode_all(tokenizer: Any, texts: Sequence[str], **settings: Any) -> list[list[int]]:
    """The token ids of every text, as the tokenizer gives them alone, with its own settings (`add_special_tokens`).

    A byte-level BPE first cuts a text into pieces from left to right and then knows nothing beyond a piece. A cut between two pieces of
    the shared beginning is therefore one in all texts. Where the tokenizer does not cut so, the texts are encoded whole.
    """
    cut = _cut(tokenizer, texts)
    if cut:
        head = _encoded(tokenizer, [texts[0][:cut]], **settings)[0]
        rests = _encoded(tokenizer, [text[cut:] for text in texts], add_special_tokens=False)
        together = [head + rest for rest in rests]
        ends = {texts.index(min(texts)), texts.index(max(texts)), 0}
        if all(together[place] == _encoded(tokenizer, [texts[place]], **settings)[0] for place in ends):
            return together
    return _encoded(tokenizer, texts, **settings)


def _cut(tokenizer: Any, texts: Sequence[str]) -> int:
    """Where the shared beginning of the texts may be cut off; 0 if it is short, or the tokenizer does not work piece by piece."""
    if len(texts) < 2:
        return 0
    first, last = min(texts), max(texts)  # all others begin with what these two share
    shared = first[: next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))]
    pieces = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    if len(shared) < WORTH_SHARING or pieces is None:
        return 0
    starts = [start for _, (start, _) in pieces.pre_tokenize_str(shared)]
    return int(starts[-LEFT_OVER]) if len(starts) > LEFT_OVER else 0


def _encoded(tokenizer: Any, texts: Sequence[str], **settings: Any) -> list[list[int]]:
    ids: list[list[int]] = []
    for start in range(0, len(texts), AT_ONCE):
        ids.extend(tokenizer(list(texts[start : start + AT_ONCE]), **settings)["input_ids"])
    return ids
