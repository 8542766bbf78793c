"""Tokenizers of checkpoints compared: weights are only alike where the models read text alike. Needs no tokenizer library."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cpt_lab.specs import Checkpoint, Evaluation, Patched, Spec, Spectra

KEPT = 4  # tokenizers that are remembered: those of a large model take a fifth of a second to read
RULES = ("normalizer", "pre_tokenizer", "post_processor")  # of tokenizer.json, beside the model: how a text becomes pieces


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer turns text into: the id of every token, and the rules that cut text into tokens, as JSON."""

    tokens: Mapping[str, int]
    rules: str


def compared(spec: Spec) -> dict[str, Checkpoint]:
    """The checkpoints whose weights a spec combines, by the names it has for them, the changed one first; empty if there is one only."""
    if isinstance(spec, Evaluation):
        return compared(spec.checkpoint)
    if isinstance(spec, Patched):
        sources = {name: source for change in spec.interventions for name, source in change.sources().items()}
        return {"tuned": spec.tuned, **sources} if sources else {}
    if isinstance(spec, Spectra) and spec.against is not None:
        return {"the checkpoint": spec.checkpoint, "its base": spec.against}
    return {}


def warnings(spec: Spec, folder: Callable[[Checkpoint], Path | None]) -> list[str]:
    """A sentence for every checkpoint of a spec whose tokenizer is not that of the first one; folders that are not there say nothing."""
    known = {name: vocabulary for name, checkpoint in compared(spec).items() if (vocabulary := read(folder(checkpoint))) is not None}
    first = next(iter(compared(spec)), "")
    if first not in known:
        return []
    apart = {name: difference(known[first], vocabulary, names=(first, name)) for name, vocabulary in known.items()}
    return [f"the tokenizers of {first} and {name} differ: {what}; see that both were meant" for name, what in apart.items() if what]


def difference(left: Vocabulary, right: Vocabulary, *, names: tuple[str, str]) -> str:
    """How two tokenizers differ, in words; empty if they do not."""
    if left == right:
        return ""
    apart = sorted(token for token in left.tokens.keys() | right.tokens.keys() if left.tokens.get(token) != right.tokens.get(token))
    if apart:
        first, second = (
            f"{vocabulary.tokens.get(apart[0], 'none')} in {name}" for vocabulary, name in zip((left, right), names, strict=True)
        )
        return f"{len(apart):,} tokens have not the same id in both, as {apart[0]!r} ({first}, {second})"
    return "their tokens are the same, and text is cut into them by other rules"


def read(folder: Path | None) -> Vocabulary | None:
    """The vocabulary in a checkpoint's folder; None if there is none that can be read."""
    path = folder / "tokenizer.json" if folder is not None else None
    if path is None or not path.is_file():
        return None
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(KEPT)
def _parsed(path: Path, _: int) -> Vocabulary | None:
    """A tokenizer.json; the second argument tells a file from what stood there before."""
    try:
        data = json.loads(path.read_bytes())
        return Vocabulary(_tokens(data), _rules(data))
    except (ValueError, TypeError, KeyError, AttributeError):  # no tokenizer.json as we know them: its loader has better words for it
        return None


def _tokens(data: dict[str, Any]) -> dict[str, int]:
    """Token -> id; a unigram model lists its tokens with their scores."""
    vocabulary = data["model"]["vocab"]
    tokens = vocabulary if isinstance(vocabulary, dict) else {token: index for index, (token, _) in enumerate(vocabulary)}
    return {**tokens, **{str(added["content"]): int(added["id"]) for added in data.get("added_tokens") or ()}}


def _rules(data: dict[str, Any]) -> str:
    """Everything that decides how text is cut. Older files write a merge as one string, and leave out what is off."""
    model = {name: value for name, value in data["model"].items() if name not in ("vocab", "merges") and value}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"].get("merges") or ()]
    return json.dumps([model, merges, [data.get(name) for name in RULES]], sort_keys=True)
