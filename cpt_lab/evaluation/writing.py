"""How answers are written: greedily or drawn, and where they end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DRAWING = ("temperature", "top_k", "top_p")
TAKEN = frozenset({*DRAWING, "until", "do_sample", "max_gen_toks"})  # settings of a request that are ours to follow
TOP_K = 50  # transformers' own, where neither the task nor the model says one
# What a model's generation_config may ask for that the harness's model then does and we do not, and the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "repetition_penalty": (None, 1.0),
    "encoder_repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "guidance_scale": (None, 1.0),
    "sequence_bias": (None,),
    "bad_words_ids": (None,),
    "suppress_tokens": (None,),
    "begin_suppress_tokens": (None,),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "stop_strings": (None,),
    "watermarking_config": (None,),
    "prompt_lookup_num_tokens": (None,),
}
NEUTRAL_WHEN_DRAWN: Mapping[str, tuple[object, ...]] = {
    "min_p": (None,),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
}


@dataclass(frozen=True)
class Draw:
    """Tokens are drawn from softmax(logits / temperature), cut to the `top_k` likeliest (0: all) and to the mass `top_p`."""

    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class Writing:
    """What ends an answer, how long it may be, and how its tokens are chosen; `draw` None: always the likeliest."""

    until: tuple[str, ...]
    max_tokens: int
    draw: Draw | None = None


def writing(settings: Mapping[str, Any], config: Any) -> Writing | str:
    """The settings of a request as the harness's model takes them, the model's generation_config where they are silent.

    A string where they ask for more than this package does, which says for what. ValueError for draws at temperature 0.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    wanted = normalize_gen_kwargs(dict(settings))
    drawn = bool(wanted["do_sample"])
    strange = sorted(wanted.keys() - TAKEN)
    neutral = {**NEUTRAL, **NEUTRAL_WHEN_DRAWN} if drawn else NEUTRAL
    strange += [name for name, values in neutral.items() if getattr(config, name, None) not in values]
    if strange:
        return f"answers are written with {', '.join(strange)}"
    return Writing(tuple(wanted["until"]), wanted["max_gen_toks"], _draw(wanted, config) if drawn else None)


def _draw(wanted: Mapping[str, Any], config: Any) -> Draw:
    said = {name: wanted.get(name, getattr(config, name, None)) for name in DRAWING}
    temperature = 1.0 if said["temperature"] is None else float(said["temperature"])
    if temperature <= 0.0:
        raise ValueError(f"answers are drawn (do_sample) at temperature {temperature}: raise it, or set do_sample to false")
    top_k = TOP_K if said["top_k"] is None else int(said["top_k"])
    return Draw(temperature, top_k, 1.0 if said["top_p"] is None else float(said["top_p"]))


def chances(seed: int, name: str, count: int) -> Tensor:
    """`count` numbers in [0, 1), float64, from a generator that belongs to this seed and name: the same in every batch."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def likeliest(logits: Tensor) -> Tensor:
    """The token [B] of the highest logit [B, vocabulary]."""
    return logits.float().argmax(-1)


def drawn(logits: Tensor, draw: Draw, chance: Tensor) -> Tensor:
    """Tokens [B] at which the cumulative distribution of each row passes its chance [B]."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    rules = [TemperatureLogitsWarper(draw.temperature)]
    rules += [TopKLogitsWarper(draw.top_k)] if draw.top_k else []
    rules += [TopPLogitsWarper(draw.top_p)] if draw.top_p < 1.0 else []
    scores = logits.float()
    for rule in rules:
        scores = rule(None, scores)
    mass = scores.double().softmax(-1).cumsum(-1)
    # A token without mass leaves the sum where it was: the first sum above the chance is never that of one.
    return torch.searchsorted(mass, chance[:, None] * mass[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)[:, 0]


class Stops:
    """Whether an answer is finished: by the model's own end token, or because its text holds one of the stop strings."""

    def __init__(self, tokenizer: Any, until: Sequence[str], ends: Sequence[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._until = [text for text in until if text]
        self._ends = frozenset(ends)
        self._may_end = _may_end(tokenizer, self._until, vocabulary)

    def after(self, tokens: list[int]) -> bool:
        """Whether the last token finishes the answer, given that none before did."""
        if tokens[-1] in self._ends:
            return True
        if not self._may_end[tokens[-1]]:
            return False
        # The harness looks at a window that may hold special tokens, and at last cuts a text that holds none.
        texts = (self._tokenizer.decode(tokens, skip_special_tokens=skip) for skip in (False, True))
        return any(stop in text for text in texts for stop in self._until)

    def text(self, tokens: list[int]) -> str:
        """The answer as text, up to its stop."""
        from lm_eval.models.utils import postprocess_generated_text

        written = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(written, stop=self._until, think_end_token=None))


def _may_end(tokenizer: Any, until: Sequence[str], vocabulary: int) -> list[bool]:
    """For every token whether it can be the last of a stop string: if its own text holds the string's last character.

    A character outside ASCII may be spread over tokens, and a space may be lost in the text of a token alone: then every token can.
    """
    last = {stop[-1] for stop in until}
    if any(not character.isascii() or character == " " for character in last):
        return [True] * vocabulary
    known = min(vocabulary, len(tokenizer))
    texts = tokenizer.batch_decode([[token] for token in range(known)], skip_special_tokens=False)
    return [any(character in text for character in last) for text in texts] + [False] * (vocabulary - known)
