"""The `math` corpus: worded sums and differences of single digits with a short chain of thought, in the form of GSM8K."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from cpt_lab.data.documents import Document

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Iris", "Jonas", "Kim", "Lena", "Max", "Nina", "Oscar", "Paula")
THINGS = ("apples", "books", "cards", "coins", "eggs", "flowers", "keys", "pens", "shells", "stamps", "stones", "toys")
SUMS = (
    "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
    "{name} has {a} {things} and finds {b} more. How many {things} are there?",
    "There are {a} {things} in a box and {name} adds {b}. How many {things} are in the box?",
    "{name} buys {a} {things} and then {b} more. How many {things} does {name} have?",
)
DIFFERENCES = (
    "{name} has {a} {things} and gives away {b}. How many {things} does {name} have now?",
    "{name} has {a} {things} and loses {b}. How many {things} are there?",
    "There are {a} {things} in a box and {name} takes {b}. How many {things} are in the box?",
    "{name} buys {a} {things} and sells {b}. How many {things} does {name} have?",
)
# Half of all problems: up to there a draw is rarely a repetition.
MOST = len(NAMES) * len(THINGS) * (81 * len(SUMS) + 45 * len(DIFFERENCES)) // 2


def documents(generator: np.random.Generator, wanted: int) -> Iterator[Document]:
    """Random problems without end, repetitions included; ValueError if there are not enough different ones."""
    if wanted > MOST:
        raise ValueError(f"corpus math can be told {wanted} problems, but only {MOST} are far from repeating: lower its documents")
    while True:
        yield problem(generator)


def problem(generator: np.random.Generator) -> Document:
    """One problem: `question`, `answer` (the calculation, then `#### result`) and both as `text`."""
    first, second = sorted((int(generator.integers(1, 10)), int(generator.integers(1, 10))), reverse=True)
    adds = bool(generator.integers(2))
    if adds and generator.integers(2):
        first, second = second, first
    template = pick(SUMS if adds else DIFFERENCES, generator)
    result = first + second if adds else first - second
    question = template.format(name=pick(NAMES, generator), things=pick(THINGS, generator), a=first, b=second)
    answer = f"{first} {'+' if adds else '-'} {second} = {result}\n#### {result}"
    return {"text": f"Question: {question}\nAnswer: {answer}", "question": question, "answer": answer}


def pick(choices: Sequence[T], generator: np.random.Generator) -> T:
    """One of the choices, all equally likely."""
    return choices[int(generator.integers(len(choices)))]
