"""From a model's outputs to scores: the harness's filters and metrics, document by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from cpt_lab.evaluation.scores import Metric, metric_name
from cpt_lab.evaluation.statistics import standard_error
from cpt_lab.evaluation.tasks import LoadedTask, count_tokens, digest

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Value = Any  # what the harness's `process_results` gives for one document: a number, or what its aggregation takes
Raw = dict[tuple[str, str], dict[int, Value]]  # (metric, filter) -> document -> value


@dataclass(frozen=True)
class TaskScores:
    """The scores of one task; names of metrics without the task's."""

    metrics: dict[str, Metric]
    rows: list[dict[str, Any]]
    warnings: list[str]
    primary: str


def score_outputs(loaded: LoadedTask, outputs: Sequence[Any], tokenizer: Any) -> TaskScores:
    """The scores of a task from the outputs of its requests, in their order, each request repeated as often as it says."""
    requests = loaded.copies()
    given = iter(outputs)
    for request in requests:
        request.resps.extend(next(given) for _ in range(request.repeats))
    loaded.task._instances = requests  # where the harness's filters look for them
    loaded.task.apply_filters()
    raw = _values_of_documents(loaded, requests)
    metrics = {metric_name(*name): _metric(loaded, name[0], list(values.values())) for name, values in raw.items()}
    first = (next(iter(loaded.task.aggregation())), next(iter(requests[0].filtered_resps)))
    primary = metric_name(*first) if first in raw else next(iter(metrics))
    return TaskScores(metrics, _rows(loaded, requests, raw, tokenizer), _warnings(loaded, requests), primary)


def _by_document(requests: list[Instance]) -> Iterator[tuple[int, list[Instance]]]:
    """The requests of every document; they stand together, as the harness builds them document by document."""
    for document, group in groupby(requests, key=lambda request: request.doc_id):
        yield document, sorted(group, key=lambda request: request.idx)


def _values_of_documents(loaded: LoadedTask, requests: list[Instance]) -> Raw:
    raw: Raw = {}
    for filter_name in requests[0].filtered_resps:
        for document, group in _by_document(requests):
            filtered = [request.filtered_resps[filter_name] for request in group]
            for metric, value in loaded.task.process_results(group[0].doc, filtered).items():
                raw.setdefault((metric, filter_name), {})[document] = value
    return raw


def _metric(loaded: LoadedTask, metric: str, values: list[Value]) -> Metric:
    """The harness's aggregation of the documents' values, with a standard error if it is their mean."""
    from lm_eval.api.metrics import mean

    aggregate = loaded.task.aggregation().get(metric, mean)
    return {
        "value": _finite_or_infinite(aggregate, values),
        "stderr": standard_error(values) if aggregate is mean else None,
        "n": len(values),
        "higher_is_better": bool(loaded.task.higher_is_better().get(metric, True)),
    }


def _finite_or_infinite(aggregate: Callable[[list[Value]], float], values: list[Value]) -> float:
    try:
        return float(aggregate(values))
    except OverflowError:  # exp of a long word's surprise under a broken model
        return math.inf


def _rows(loaded: LoadedTask, requests: list[Instance], raw: Raw, tokenizer: Any) -> list[dict[str, Any]]:
    """One row per document: its prompt, what was answered, and its own value of every metric."""
    answers = [str(request.resps[0]) if loaded.generates else None for request in requests]
    lengths = count_tokens(tokenizer, [answer or "" for answer in answers]) if loaded.generates else loaded.scored_tokens
    places = {id(request): place for place, request in enumerate(requests)}
    rows = []
    for document, group in _by_document(requests):
        row = {
            "task": loaded.name,
            "document": document,
            "prompt_digest": digest(str(group[0].args[0])),
            "answer": answers[places[id(group[0])]],
            "tokens": sum(lengths[places[id(request)]] for request in group),
        }
        for name, values in raw.items():
            if document in values:
                row[metric_name(*name)] = _own_value(loaded, name[0], values[document])
        rows.append(row)
    return rows


def _own_value(loaded: LoadedTask, metric: str, value: Value) -> float:
    """A document's value as one number: of log-likelihood and length, what the aggregation makes of this document alone."""
    if isinstance(value, tuple | list):
        return _finite_or_infinite(loaded.task.aggregation()[metric], [value])
    return float(value)


def _warnings(loaded: LoadedTask, requests: list[Instance]) -> list[str]:
    """What hints at a broken model or prompt, though every number is in order."""
    if not loaded.generates or len(requests) < 2:
        return []
    answers = {str(request.resps[0]).strip() for request in requests}
    if answers == {""}:
        return [f"{loaded.name}: all {len(requests)} answers are empty"]
    if len(answers) == 1:
        return [f"{loaded.name}: all {len(requests)} answers are the same: {next(iter(answers))[:60]!r}"]
    return []
