"""Rows of the published data sets as documents of our tasks: pure functions, the same wherever the rows come from.

A document is what prompts are made of and answers are held against. Choices begin with the blank that stands before them in the prompt:
OLMES counts it in the length of an answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Document = dict[str, Any]
LETTERS = "ABCD"
CHOICE_SEED = 1234  # GPQA names its right answer first: T does not say how the options were ordered


def gsm8k(row: Row) -> Document:
    """The question, and the number after `####`."""
    from cpt_lab.evaluation.answers import last_number

    return {"question": row["question"], "answer": last_number(row["answer"].split("####")[-1].strip())}


def drop(row: Row) -> Document:
    """The passage, its question, and all answers that annotators gave, each a list of spans, in the hub's form or in OLMES's."""
    answers = row["answers"] if "answers" in row else _drop_answers(row)
    return {"passage": row["passage"], "question": row["question"], "answers": answers, "answer": ", ".join(answers[0])}


def humaneval(row: Row) -> Document:
    """The head of a function, and the tests that its completion must pass."""
    return {name: row[name] for name in ("task_id", "prompt", "entry_point", "test")}


def arc(row: Row) -> Document:
    """A question with its choices, in the hub's form or in OLMES's."""
    if "query" in row:
        question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
        return {"question": question, "choices": [f" {choice}" for choice in row["choices"]], "gold": row["gold"]}
    choices = [f" {choice}" for choice in row["choices"]["text"]]
    return {"question": row["question"], "choices": choices, "gold": row["choices"]["label"].index(row["answerKey"])}


def hellaswag(row: Row) -> Document:
    """The beginning of a text with four endings, cleared of what WikiHow's pages left in it.

    The second half of a beginning starts with a capital letter and has no other, as OLMES has it.
    """
    query = _clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return {"query": query, "choices": [f" {_clean(ending)}" for ending in row["endings"]], "gold": int(row["label"])}


def winogrande(row: Row) -> Document:
    """The sentence up to its gap, filled with each option, and the rest of it: the rest is what is scored."""
    before, after = row["sentence"].split("_")
    contexts = [before + row[name] for name in ("option1", "option2")]
    return {"contexts": contexts, "continuation": after.strip(), "gold": int(row["answer"]) - 1}


def math(row: Row) -> Document:
    """The problem, and what its solution puts into the last box."""
    from cpt_lab.evaluation.answers import boxed

    return {"question": row["problem"], "answer": boxed(row["solution"])}


def mmlu(row: Row) -> Document:
    """A question with four options, and the letter of the right one."""
    return {"question": row["question"], "choices": list(row["choices"]), "answer": LETTERS[row["answer"]]}


def gpqa(row: Row) -> Document:
    """A question with four options in an order drawn from its text, and the letter of the right one."""
    right, *wrong = (row[name].strip() for name in ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"))
    choices = [right, *wrong]
    random.Random(f"{CHOICE_SEED} {row['Question']}").shuffle(choices)
    return {"question": row["Question"].strip(), "choices": choices, "answer": LETTERS[choices.index(right)]}


def drop_solved(document: Document) -> str:
    return f"Passage: {document['passage']}\nQuestion: {document['question']}\nAnswer: {document['answer']}"


def arc_solved(document: Document) -> str:
    return f"Question: {document['question']}\nAnswer:{document['choices'][document['gold']]}"


def hellaswag_solved(document: Document) -> str:
    return f"{document['query']}{document['choices'][document['gold']]}"


def winogrande_solved(document: Document) -> str:
    return f"{document['contexts'][document['gold']]} {document['continuation']}"


def _clean(text: str) -> str:
    """Without the marks that WikiHow's pages left: a title ends the sentence before it, what stands in square brackets goes.

    The harness's own HellaSwag ends that sentence twice if it had a full stop.
    """
    return re.sub(r"\[.*?\]", "", re.sub(r"\.? \[title\]", ". ", text.strip())).replace("  ", " ")


def _drop_answers(row: Row) -> list[list[str]]:
    """The distinct answers of the hub's rows: the first annotator's, then those of the validators."""
    validated = row["validated_answers"]
    others = [{name: validated[name][place] for name in ("number", "date", "spans")} for place in range(len(validated["number"]))]
    return [list(answer) for answer in dict.fromkeys(_spans(answer) for answer in (row["answer"], *others))]


def _spans(answer: Row) -> tuple[str, ...]:
    """An answer of DROP is a number, some spans of the passage, or a date."""
    if answer["number"] != "":
        return (str(answer["number"]),)
    if answer["spans"]:
        return tuple(answer["spans"])
    return (" ".join(answer["date"][part] for part in ("day", "month", "year")).strip(),)


READERS: dict[str, Callable[[Row], Document]] = {
    "gsm8k": gsm8k,
    "drop": drop,
    "humaneval": humaneval,
    "arc_easy": arc,
    "hellaswag": hellaswag,
    "winogrande": winogrande,
    "math500": math,
    "mmlu": mmlu,
    "gpqa": gpqa,
}

# Documents with their answers, as they stand before a question.
SOLVED: dict[str, Callable[[Document], str]] = {
    "drop": drop_solved,
    "arc_easy": arc_solved,
    "hellaswag": hellaswag_solved,
    "winogrande": winogrande_solved,
}
