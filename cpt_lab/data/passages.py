"""The `inst` corpus: short passages with questions whose answers are words of the passage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_lab.data.arithmetic import NAMES, pick
from cpt_lab.data.documents import Document

if TYPE_CHECKING:
    import numpy as np

COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white", "yellow")
OBJECTS = ("bag", "ball", "bike", "boat", "book", "car", "coat", "cup", "hat", "kite", "lamp", "scarf")
PLACES = ("attic", "barn", "cellar", "garden", "hall", "kitchen", "library", "office", "park", "school", "shop", "station")
MOST = 1_000_000  # of some 10^9: far from any repetition, and more than anyone needs


def documents(generator: np.random.Generator, wanted: int) -> Iterator[Document]:
    """Random passages without end, repetitions included; ValueError if there are not enough different ones."""
    if wanted > MOST:
        raise ValueError(f"corpus inst can be told {wanted} passages, but only {MOST} are far from repeating: lower its documents")
    while True:
        yield passage(generator)


def passage(generator: np.random.Generator) -> Document:
    """Two people, what each owns and where it is; one question about one of them, whose answer is a word of the passage."""
    names, colours, objects, places = (generator.permutation(len(words))[:2] for words in (NAMES, COLOURS, OBJECTS, PLACES))
    facts = [
        (NAMES[name], COLOURS[colour], OBJECTS[thing], PLACES[place])
        for name, colour, thing, place in zip(names, colours, objects, places, strict=True)
    ]
    story = " ".join(f"{name} has a {colour} {thing} in the {place}." for name, colour, thing, place in facts)
    name, colour, thing, place = pick(facts, generator)
    asked, answer = pick(
        ((f"What colour is the {thing}?", colour), (f"Who has the {thing}?", name), (f"Where is the {thing}?", place)), generator
    )
    question = f"{story} {asked}"
    return {"text": f"Question: {question}\nAnswer: {answer}", "question": question, "answer": answer}
