"""The fast model side: a plan's requests answered by one live model after another, from what they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from cpt_lab.evaluation.boundaries import Boundaries, weights_below
from cpt_lab.evaluation.eval_plan import Part, Prompt, TaskPlan
from cpt_lab.evaluation.generation import write_answers
from cpt_lab.evaluation.loglikelihood import Question, log_likelihoods, pack
from cpt_lab.evaluation.memory import kept_bytes, rows_that_fit
from cpt_lab.evaluation.prefix_attention import Prefix, Rows
from cpt_lab.evaluation.reader import Reader
from cpt_lab.evaluation.writing import Stops, chances
from cpt_lab.failures import is_out_of_memory

Answer = str | tuple[float, bool]
Answers = dict[tuple[int, int], Answer]  # by place of the request and repetition
Span = tuple[int, int]  # of a part's items: a batch
KEPT_FOR_QUESTIONS = 0.8  # of the room for what is kept: prefixes come first and are small


class FastModel:
    """Answers plans by live models. What it keeps from one to the next is found again only under the very weights that made it.

    Batches are fixed when a part is first answered; one for which memory does not suffice is halved, and stays so.
    """

    def __init__(self, plans: Sequence[TaskPlan], tokenizer: Any, model: Any, *, batch: int | Literal["auto"], seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._batches = {(plan.name, which): _batches(part, model, batch) for plan in plans for which, part in enumerate(plan.parts)}
        self._kept = Boundaries(kept_bytes(model.device))
        self._reader = Reader(model)
        self._kept_layers = self._layers_that_fit(plans, model)
        self._stops: dict[tuple[str, int], Stops] = {}

    def begin(self, model: Any) -> None:
        """Go on with this model, its weights as they are now."""
        self._reader = Reader(model)
        self._kept.begin(weights_below(model, self._reader.layers))

    def batches(self, plan: TaskPlan) -> list[int]:
        """Rows of every batch of a task, as they are now fixed."""
        return [stop - start for which in range(len(plan.parts)) for start, stop in self._batches[plan.name, which]]

    def answers(self, plan: TaskPlan, on_rows: Callable[[int], None]) -> Answers:
        """The answers to all requests of a task; NonFiniteLogits if the model says NaN or infinity."""
        found: Answers = {}
        for which, part in enumerate(plan.parts):
            name = (plan.name, which)
            prefix = self._prefix(name, part.prefix)
            waiting, done = list(reversed(self._batches[name])), []
            while waiting:
                span = waiting.pop()
                try:
                    answers = self._answer(name, part, span, prefix)
                except RuntimeError as error:
                    if not is_out_of_memory(error) or span[1] - span[0] == 1:
                        raise
                    middle = sum(span) // 2
                    waiting += [(middle, span[1]), (span[0], middle)]
                    continue
                _add(found, answers)
                done.append(span)
                on_rows(len(answers))
            self._batches[name] = done
        return found

    def _answer(self, name: tuple[str, int], part: Part, span: Span, prefix: Prefix | None) -> list[tuple[tuple[int, int], Answer]]:
        items = part.items[slice(*span)]
        if part.how is None:
            return self._weigh((*name, *span), [item for item in items if isinstance(item, Question)], prefix)
        return self._write(name, part, [item for item in items if isinstance(item, Prompt)], prefix)

    def _write(
        self, name: tuple[str, int], part: Part, prompts: list[Prompt], prefix: Prefix | None
    ) -> list[tuple[tuple[int, int], Answer]]:
        assert part.how is not None
        stops = self._stops.get(name)
        if stops is None:
            stops = self._stops[name] = self._make_stops(part)
        count = part.how.max_tokens
        numbers = torch.stack([chances(self._seed, prompt.name, count) for prompt in prompts]) if part.how.draw else None
        tokens = [prompt.tokens for prompt in prompts]
        written = write_answers(self._reader, tokens, part.how, prefix=prefix, stops=stops, chances=numbers)
        return [((prompt.place, prompt.repetition), stops.text(answer)) for prompt, answer in zip(prompts, written, strict=True)]

    def _make_stops(self, part: Part) -> Stops:
        assert part.how is not None
        tokenizer, config = self._tokenizer, self._reader.model.generation_config
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        end_text = tokenizer.decode(tokenizer.eos_token_id, skip_special_tokens=False)
        until = [*part.how.until, *([] if end_text in part.how.until else [end_text])]
        return Stops(tokenizer, until, [end for end in ends if end is not None], self._reader.vocabulary)

    def _weigh(self, what: tuple[Any, ...], questions: list[Question], prefix: Prefix | None) -> list[tuple[tuple[int, int], Answer]]:
        packed = pack(questions, self._reader.device)
        layers = len(self._reader.layers)
        start = self._kept.highest(what, layers)
        first = start[0] if start else 0
        record = [layer for layer in self._kept_layers if first < layer < layers and self._kept.wants(what, layer)]
        states, inputs = self._reader.read_from(packed.tokens, packed.rows(prefix), start=start, record=record)
        for layer, given in inputs.items():
            self._kept.put(what, layer, given)
        outcomes = log_likelihoods(self._reader, states, packed)
        return [((place, 0), outcome) for place, outcome in zip(packed.places, outcomes, strict=True)]

    def _prefix(self, name: tuple[str, int], tokens: tuple[int, ...]) -> Prefix | None:
        """The prefix read by the model, from the lowest layer whose weights are new."""
        if not tokens:
            return None
        layers = len(self._reader.layers)
        known: list[
            tuple[torch.Tensor, ...]
        ] = []  # keys and values from the first layer on, each made by the weights up to and with its layer
        while len(known) < layers and (pair := self._kept.get((*name, "prefix"), len(known) + 1)):
            known.append(pair)
        if len(known) < layers:
            known += self._read_prefix(name, tokens, len(known))
        keys, values = zip(*known, strict=True)
        return Prefix(keys, values)

    def _read_prefix(self, name: tuple[str, int], tokens: tuple[int, ...], known: int) -> list[tuple[torch.Tensor, ...]]:
        """Keys and values of the layers from `known` on."""
        place, layers = (*name, "prefix input"), len(self._reader.layers)
        given = self._kept.get(place, known) if known else None
        first = known if given else 0
        read = torch.tensor([tokens], device=self._reader.device)
        positions = torch.arange(len(tokens), device=self._reader.device)[None]
        rows = Rows(None, positions, torch.zeros_like(positions), keep=True)
        record = [layer for layer in range(first + 1, layers) if self._kept.wants(place, layer)]
        _, inputs = self._reader.read_from(read, rows, start=(first, given[0]) if given else None, record=record)
        for layer, states in inputs.items():
            self._kept.put(place, layer, states)
        made = [tuple(part[0] for part in rows.stored(layer)) for layer in range(known, layers)]
        for layer, pair in enumerate(made, start=known):
            if self._kept.wants((*name, "prefix"), layer + 1):
                self._kept.put((*name, "prefix"), layer + 1, *pair)
        return made

    def _layers_that_fit(self, plans: Sequence[TaskPlan], model: Any) -> tuple[int, ...]:
        """The layers whose inputs are kept for all questions: as many as there is room for, at even distances."""
        tokens = 0
        for plan in plans:
            for which, part in enumerate(plan.parts):
                if part.how is None:
                    tokens += sum((stop - start) * part.items[start].length for start, stop in self._batches[plan.name, which])
        layers = len(self._reader.layers)
        bytes_of_one = max(1, tokens * model.config.hidden_size * model.dtype.itemsize)
        count = min(layers - 1, int(KEPT_FOR_QUESTIONS * kept_bytes(model.device)) // bytes_of_one)
        return tuple(sorted({(place + 1) * layers // (count + 1) for place in range(count)}))


def _batches(part: Part, model: Any, batch: int | Literal["auto"]) -> list[Span]:
    """Runs of a part's items, which get shorter: what is enough for the first is enough for all."""
    written = part.how.max_tokens if part.how else 0
    rows = rows_that_fit(model, read=part.items[0].length, written=written) if batch == "auto" else batch
    return [(start, min(start + rows, len(part.items))) for start in range(0, len(part.items), rows)]


def _add(found: Answers, answers: list[tuple[tuple[int, int], Answer]]) -> None:
    """Note the answers. Of a text that was read in windows the log-likelihoods add up."""
    for place, answer in answers:
        before = found.get(place)
        if isinstance(before, tuple) and isinstance(answer, tuple):
            answer = (before[0] + answer[0], before[1] and answer[1])
        found[place] = answer
