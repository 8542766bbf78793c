"""From a model's outputs to scores: the harness's filters and metrics, document by document."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from cpt_lab.evaluation.scores import Metric, metric_name
from cpt_lab.evaluation.statistics import standard_error
from cpt_lab.evaluation.tasks import LoadedTask, count_tokens, digest
from cpt_lab.names import unknown
from cpt_lab.specs.benchmarks import OUTPUT_TOKENS

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from cpt_lab.specs import Protocol

LENGTHS = (OUTPUT_TOKENS, "none")
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
    if loaded.chat:
        return _score_repetitions(loaded, requests, tokenizer)
    raw = _filtered_values(loaded, requests)
    metrics = {metric_name(*name): _metric(loaded, name[0], list(values.values())) for name, values in raw.items()}
    first = (next(iter(loaded.task.aggregation())), next(iter(requests[0].filtered_resps)))
    primary = metric_name(*first) if first in raw else next(iter(metrics))
    return TaskScores(metrics, _rows(loaded, requests, raw, tokenizer), _warnings(loaded, requests), primary)


def means_of(spec: Protocol, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The protocol's means over tasks, se = sqrt(sum se_t^2) / T: different tasks have different documents.

    KeyError for a metric that is not there.
    """
    means: dict[str, Metric] = {}
    for mean in spec.means:
        missing = [name for name in mean.of if name not in metrics]
        if missing:
            raise KeyError(unknown(f"metric of the mean {mean.full_name}", missing[0], metrics))
        parts = [metrics[name] for name in mean.of]
        errors = [part["stderr"] for part in parts]
        known = [error for error in errors if error is not None]
        metric: Metric = {
            "value": math.fsum(part["value"] for part in parts) / len(parts),
            "stderr": math.hypot(*known) / len(parts) if len(known) == len(parts) else None,
            "n": sum(part["n"] for part in parts),
            "higher_is_better": all(part["higher_is_better"] for part in parts),
        }
        means[mean.full_name] = _marked(metric, "; ".join(filter(None, dict.fromkeys(part.get("part", "") for part in parts))))
    return means


def _score_repetitions(loaded: LoadedTask, requests: list[Instance], tokenizer: Any) -> TaskScores:
    """Every answer to a prompt scored by itself: a document's value is the mean of its answers' values (T C.1).

    The standard error is over documents; `std` is that of the repetitions' own means, with n - 1, as T reports it.
    """
    repeats = requests[0].repeats or 1
    by_repetition = [_filtered_values(loaded, _only(requests, place)) for place in range(repeats)]
    lengths = _answer_lengths(requests, tokenizer)
    for place, raw in enumerate(by_repetition):
        raw[LENGTHS] = {request.doc_id: float(of_answers[place]) for request, of_answers in zip(requests, lengths, strict=True)}
    merged: Raw = {
        name: {document: math.fsum(raw[name][document] for raw in by_repetition) / repeats for document in by_repetition[0][name]}
        for name in by_repetition[0]
    }
    metrics = {metric_name(*name): _metric(loaded, name[0], list(values.values())) for name, values in merged.items()}
    for name in merged if repeats > 1 else ():
        metrics[metric_name(*name)]["std"] = stdev(fmean(raw[name].values()) for raw in by_repetition)
    metrics[OUTPUT_TOKENS]["higher_is_better"] = False  # neither is: what is no share of documents is not drawn in percent
    rows = _rows(loaded, requests, merged, tokenizer)
    for row, request in zip(rows, requests, strict=True):  # one request per document
        row["answers"] = [str(answer) for answer in request.resps]
    return TaskScores(metrics, rows, _warnings(loaded, requests), next(iter(metrics)))


def _only(requests: list[Instance], repetition: int) -> list[Instance]:
    """The requests with one of their answers."""
    return [replace(request, resps=[request.resps[repetition]], filtered_resps={}) for request in requests]


def _answer_lengths(requests: list[Instance], tokenizer: Any) -> list[list[int]]:
    """For every request the tokens of each of its answers."""
    lengths = iter(count_tokens(tokenizer, [str(answer) for request in requests for answer in request.resps]))
    return [[next(lengths) for _ in request.resps] for request in requests]


def _filtered_values(loaded: LoadedTask, requests: list[Instance]) -> Raw:
    """What the harness's filters make of the answers, and its metrics of that."""
    loaded.task._instances = requests  # where the harness's filters look for them
    loaded.task.apply_filters()
    return _judged(requests) if loaded.runs_code else _values_of_documents(loaded, requests)


def _by_document(requests: list[Instance]) -> Iterator[tuple[int, list[Instance]]]:
    """The requests of every document; they stand together, as the harness builds them document by document."""
    for document, group in groupby(requests, key=lambda request: request.doc_id):
        yield document, sorted(group, key=lambda request: request.idx)


def _judged(requests: list[Instance]) -> Raw:
    """Programs are run all together, each against the tests of its document."""
    from cpt_lab.evaluation.code import pass_rates

    (filter_name,) = requests[0].filtered_resps
    rates = pass_rates([request.doc for request in requests], [[request.filtered_resps[filter_name]] for request in requests])
    return {("pass_at_1", filter_name): {request.doc_id: rate for request, rate in zip(requests, rates, strict=True)}}


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
    found: Metric = {
        "value": _finite_or_infinite(aggregate, values),
        "stderr": standard_error(values) if aggregate is mean else None,
        "n": len(values),
        "higher_is_better": bool(loaded.task.higher_is_better().get(metric, True)),
    }
    return _marked(found, loaded.part)


def _marked(metric: Metric, part: str) -> Metric:
    """The metric, marked if it was not made from all items."""
    return {**metric, "part": part} if part else metric


def _finite_or_infinite(aggregate: Callable[[list[Value]], float], values: list[Value]) -> float:
    try:
        return float(aggregate(values))
    except OverflowError:  # exp of a long word's surprise under a broken model
        return math.inf


def _rows(loaded: LoadedTask, requests: list[Instance], raw: Raw, tokenizer: Any) -> list[dict[str, Any]]:
    """One row per document: its prompt, what was answered, and its own value of every metric."""
    answers = [str(request.resps[0]) if loaded.generates else None for request in requests]
    lengths = [sum(of_answers) for of_answers in _answer_lengths(requests, tokenizer)] if loaded.generates else loaded.scored_tokens
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
    answers = {str(answer).strip() for request in requests for answer in request.resps}
    if answers == {""}:
        return [f"{loaded.name}: all {len(requests)} answers are empty"]
    if len(answers) == 1:
        return [f"{loaded.name}: all {len(requests)} answers are the same: {next(iter(answers))[:60]!r}"]
    return []
