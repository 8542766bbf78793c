"""What will be read, and in which batches: tokens of all requests of a protocol, made once for all models that follow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cpt_lab.evaluation.encoding import encode_all
from cpt_lab.evaluation.loglikelihood import Question
from cpt_lab.evaluation.tasks import LoadedTask
from cpt_lab.evaluation.writing import Writing, writing

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

WORTH_SHARING = 8  # tokens; a shorter prefix is read with every row
CHOICES_IN_A_ROW = 512  # tokens of choices behind one context: each is compared with all others, though it does not see them

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """The tokens that the shared prefix leaves of a prompt, never none; its request's place in the task and which answer to it this is.

    `name` says which document, request and repetition: what is drawn for it depends on nothing else.
    """

    place: int
    repetition: int
    name: str
    tokens: Tokens

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Part:
    """Requests that are answered together: behind one prefix and, where answers are written, in one way; the longest first."""

    prefix: Tokens
    items: tuple[Prompt, ...] | tuple[Question, ...]
    how: Writing | None


@dataclass(frozen=True)
class TaskPlan:
    """A task as parts; `why_not` says why it has none, and the harness's own model has to answer it."""

    name: str
    parts: tuple[Part, ...]
    why_not: str = ""

    def digest(self) -> str:
        """SHA-256 of all that is read and how it is answered."""
        return hashlib.sha256(repr(self).encode()).hexdigest()  # names, numbers and texts alone, in their order


def plan_task(task: LoadedTask, encoder: Any, config: Any) -> TaskPlan:
    """The plan of a task; `encoder` is the harness's model, which encodes texts as it always does, `config` the generation_config.

    ValueError for answers that are drawn at temperature 0.
    """
    kind = task.requests[0].request_type
    if kind == "generate_until":
        return _plan_answers(task, encoder, config)
    if kind == "loglikelihood":
        return TaskPlan(task.name, (_questions(_pairs(task.requests, encoder), together=True),))
    if kind == "loglikelihood_rolling":
        windows = _windows(task.requests, encoder)
        return TaskPlan(task.name, (_questions(windows, together=False),) if windows else ())
    return TaskPlan(task.name, (), f"its requests are of kind {kind}")


def _plan_answers(task: LoadedTask, encoder: Any, config: Any) -> TaskPlan:
    """One part for every way of writing."""
    ways = [writing(request.args[1], config) for request in task.requests]
    for way in ways:
        if isinstance(way, str):
            return TaskPlan(task.name, (), way)
    prompts = _encoded(encoder, [request.args[0] for request in task.requests], bos=encoder.tokenizer.bos_token)
    parts = []
    for way in dict.fromkeys(ways):
        places = [place for place, other in enumerate(ways) if other == way]
        assert isinstance(way, Writing)
        prefix = _shared([prompts[place] for place in places])
        items = [one for place in places for one in _answers(task, place, tuple(prompts[place][len(prefix) :]), drawn=bool(way.draw))]
        parts.append(Part(prefix, tuple(sorted(items, key=lambda item: -item.length)), way))
    return TaskPlan(task.name, tuple(parts))


def _answers(task: LoadedTask, place: int, tokens: Tokens, *, drawn: bool) -> list[Prompt]:
    """One prompt for every answer that is wanted; where none is drawn, the first is like all others."""
    request = task.requests[place]
    names = (f"{task.name}/{request.doc_id}/{request.idx}/{repetition}" for repetition in range(request.repeats if drawn else 1))
    return [Prompt(place, repetition, name, tokens) for repetition, name in enumerate(names)]


Pair = tuple[int, list[int], list[int]]  # place of the request, context, continuation


def _questions(pairs: Sequence[Pair], *, together: bool) -> Part:
    """One part; `together`: continuations of one context share a row, if they stand one after another."""
    prefix = _shared([context for _, context, _ in pairs])
    items: list[Question] = []
    before: list[int] = []
    for place, context, continuation in pairs:
        choice = (place, tuple(continuation))
        if together and context == before and items[-1].length - len(items[-1].context) + len(continuation) <= CHOICES_IN_A_ROW:
            items[-1] = Question(items[-1].context, (*items[-1].choices, choice))
        else:
            items.append(Question(tuple(context[len(prefix) :]), (choice,)))
        before = context
    return Part(prefix, tuple(sorted(items, key=lambda item: -item.length)), None)


def _shared(contexts: Sequence[Sequence[int]]) -> Tokens:
    """The tokens that all begin with and none ends with, if they are worth it."""
    shared = min(contexts, key=len)[:-1]
    for context in contexts:
        if context[: len(shared)] != shared:
            shared = shared[: next(place for place, (one, other) in enumerate(zip(shared, context, strict=False)) if one != other)]
    return tuple(shared) if len(contexts) > 1 and len(shared) >= WORTH_SHARING else ()


# ------------------------------------------------------------------------------------------- tokens as the harness makes them


def _pairs(requests: Iterable[Instance], encoder: Any) -> list[Pair]:
    """Context and continuation of every request: spaces at a context's end are the continuation's, an empty one is the prefix token."""
    texts = [_moved_spaces(*request.args) for request in requests]
    bos = encoder.tokenizer.decode(encoder.prefix_token_id)
    contexts = _encoded(encoder, [context for context, _ in texts], bos=bos)
    wholes = _encoded(encoder, [context + continuation for context, continuation in texts], bos=bos)
    pairs = []
    for place, ((text, continuation), context, whole) in enumerate(zip(texts, contexts, wholes, strict=True)):
        if text:
            pairs.append((place, context, whole[len(context) :]))
            continue
        alone = encoder.tok_encode(continuation, add_special_tokens=False)
        begins = alone[0] == encoder.prefix_token_id
        pairs.append((place, alone[:1], alone[1:]) if begins else (place, [encoder.prefix_token_id], alone))
    return pairs


def _moved_spaces(context: str, continuation: str) -> tuple[str, str]:
    bare = context.rstrip()
    return (bare, context[len(bare) :] + continuation) if context else (context, continuation)


def _windows(requests: Iterable[Instance], encoder: Any) -> list[Pair]:
    """Whole texts in windows of the model's context, each token scored once; an empty text has none."""
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    texts = _encoded(encoder, [request.args[0] for request in requests], bos=encoder.tokenizer.decode(encoder.prefix_token_id))
    return [
        (place, *make_disjoint_window(window))
        for place, tokens in enumerate(texts)
        for window in get_rolling_token_windows(tokens, encoder.prefix_token_id, encoder.max_length, 1)
    ]


def _encoded(encoder: Any, texts: Sequence[str], *, bos: str | None) -> list[list[int]]:
    """The tokens of every text, each text encoded once; those that begin with `bos` get no other."""
    usual = {} if encoder.add_bos_token is None else {"add_special_tokens": encoder.add_bos_token}
    begun = [text for text in dict.fromkeys(texts) if bos and text.startswith(bos)]
    others = [text for text in dict.fromkeys(texts) if not (bos and text.startswith(bos))]
    ids: dict[str, list[int]] = {}
    for some, special in ((begun, {"add_special_tokens": False}), (others, usual)):
        if some:
            ids.update(zip(some, encode_all(encoder.tokenizer, some, **special), strict=True))
    return [ids[text] for text in texts]
