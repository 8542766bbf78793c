"""What an answer says, and whether it is right: the functions that task files name beside the harness's own filters and metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")  # OLMES reads a sign only before a number with a point
NO_NUMBER = ""


def last_number(text: str) -> str:
    """The last number in a text, commas between digits left out; the text itself if it has none (OLMES, GSM8K)."""
    without_commas = re.sub(r"(\d),(\d)", r"\1\2", text)
    numbers = NUMBER.findall(without_commas)
    return str(numbers[-1]) if numbers else without_commas


def filter_last_number(responses: Sequence[Sequence[str]], documents: Sequence[Document]) -> list[list[str]]:  # noqa: ARG001
    """The last number of every response: a `custom` filter of the harness."""
    return [[last_number(response) for response in of_document] for of_document in responses]


def choice_accuracies(document: Document, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Whether the right choice has the highest log-likelihood per character, its blank counted, and the highest of all (OLMES)."""
    sums = [log_likelihood for log_likelihood, _ in results]
    per_character = [value / len(choice) for value, choice in zip(sums, document["choices"], strict=True)]
    return {"acc_per_char": _is_best(per_character, document["gold"]), "acc_raw": _is_best(sums, document["gold"])}


def context_accuracy(document: Document, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Whether the continuation is likelier after the right context: all have the same continuation, so no length counts."""
    return {"acc_raw": _is_best([log_likelihood for log_likelihood, _ in results], document["gold"])}


def drop_scores(document: Document, results: Sequence[str]) -> dict[str, float]:
    """F1 and exact match of the harness's own DROP against the best of the annotators' answers."""
    from lm_eval.tasks.drop.utils import process_results

    scores = process_results(document, list(results))
    return {"f1": float(scores["f1"]), "em": float(scores["em"])}


def boxed(text: str) -> str | None:
    r"""The contents of the last \boxed{...} of a text, braces matched; None without one."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start)
    depth = 0
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin + 1 : place]
    return None  # cut off before the box was closed


def same_boxed_number(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Whether the box holds the gold number."""
    found, gold = _number(boxed(results[0]) or NO_NUMBER), _number(document["answer"])
    return {"exact_match": float(found is not None and found == gold)}


def same_boxed_expression(document: Document, results: Sequence[str]) -> dict[str, float]:
    """Whether the box holds the gold expression, by the harness's own comparison of MATH answers, or the gold number."""
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    found, gold = boxed(results[0]), document["answer"]
    if found is None:
        return {"exact_match": 0.0}
    number = _number(found)
    return {"exact_match": float(is_equiv(found, gold) or (number is not None and number == _number(gold)))}


def same_boxed_letter(document: Document, results: Sequence[str]) -> dict[str, float]:
    r"""Whether the box names the right option: `B`, `\text{B}`, `(B)`, `B. the text`."""
    found = re.match(r"(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?([A-D])(?![A-Za-z])", (boxed(results[0]) or "").strip())
    return {"exact_match": float(found is not None and found[1] == document["answer"])}


def _is_best(values: Sequence[float], gold: int) -> float:
    """1 if the gold place holds the highest value, the first of equals being taken."""
    return float(max(range(len(values)), key=values.__getitem__) == gold)


def _number(text: str) -> float | None:
    """The one number of a text without dollars, percents, thousands' commas and units in words; None if that is no number."""
    plain = re.sub(r"\\(?:text|mathrm|mbox)\{[^{}]*\}|\\[!,;: ]|\\?[$%]|[\s,]", "", text)
    try:
        return float(plain)
    except ValueError:
        return None
