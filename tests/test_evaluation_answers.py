"""What an answer says: every reading against hand-made outputs, with the cases where the papers' readings differ from the harness's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.evaluation import answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" So the answer is 18.", "18"),
        ("There are 3 cars. 2 more arrive.", "2"),
        ("costs $1,450,000.", "1450000"),
        ("1,2 and 3,45", "345"),
        ("it is 2.50", "2.50"),
        ("it is -2.5", "-2.5"),
        ("it is -10", "10"),  # OLMES reads a sign before a point only, in gold answers too
        ("...", "..."),  # the harness's flexible extraction would call this a number
        ("none", "none"),
        ("", ""),
    ],
)
def test_the_last_number_is_read_as_olmes_reads_it(text: str, number: str) -> None:
    assert answers.last_number(text) == number
    assert answers.filter_last_number([[text, "1 2"]], [{}]) == [[number, "2"]]


@given(st.integers(0, 10**9), st.text("abc .:", max_size=20))
def test_a_number_is_found_with_and_without_commas_between_its_thousands(number: int, text: str) -> None:
    assert answers.last_number(f"{text} {number}") == str(number)
    if number < 10**6:  # a digit between two commas is kept: OLMES's expression looks at each digit once
        assert answers.last_number(f"{text} {number:,}") == str(number)


def choice(*sums: float) -> list[tuple[float, bool]]:
    return [(value, False) for value in sums]


def test_accuracy_per_character_counts_the_leading_blank() -> None:
    document = {"choices": [" a", " food"], "gold": 1}
    sums = (-4.0, -11.0)  # per character with the blank -2 and -2.2, without it -4 and -2.75
    assert answers.choice_accuracies(document, choice(*sums)) == {"acc_per_char": 0.0, "acc_raw": 0.0}
    assert max(range(2), key=lambda place: sums[place] / (len(document["choices"][place]) - 1)) == document["gold"]


@given(st.lists(st.tuples(st.floats(-100, -0.01), st.integers(1, 30)), min_size=2, max_size=5), st.data())
def test_choices_are_compared_as_a_plain_loop_compares_them(scored: list[tuple[float, int]], data: st.DataObject) -> None:
    gold = data.draw(st.integers(0, len(scored) - 1))
    document = {"choices": [" " + "x" * length for _, length in scored], "gold": gold}
    best, best_value = 0, -math.inf
    for place, (value, length) in enumerate(scored):
        if value / (length + 1) > best_value:
            best, best_value = place, value / (length + 1)
    found = answers.choice_accuracies(document, choice(*(value for value, _ in scored)))
    assert found["acc_per_char"] == float(best == gold)
    assert found["acc_raw"] == float([value for value, _ in scored].index(max(value for value, _ in scored)) == gold)


def test_of_equal_contexts_the_first_is_taken() -> None:
    assert answers.context_accuracy({"gold": 0}, choice(-3.0, -3.0)) == {"acc_raw": 1.0}
    assert answers.context_accuracy({"gold": 1}, choice(-3.0, -3.0)) == {"acc_raw": 0.0}
    assert answers.context_accuracy({"gold": 1}, choice(-3.0, -2.0)) == {"acc_raw": 1.0}


@pytest.mark.parametrize(
    ("answer", "f1", "em"),
    [
        (" Ann", 1.0, 1.0),
        (" the Ann.", 1.0, 1.0),  # articles and marks do not count
        (" Ann Lee", 0.67, 0.0),
        (" Tom", 0.0, 0.0),
        (" 2.0", 1.0, 1.0),  # a number is a number however it is written
        ("", 0.0, 0.0),
    ],
)
def test_drop_takes_the_best_of_the_annotators_answers(answer: str, f1: float, em: float) -> None:
    assert answers.drop_scores({"answers": [["Ann"], ["2"]]}, [answer]) == {"f1": f1, "em": em}


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{}", ""),
        (r"\boxed{\frac{1}{2", None),  # cut off by the limit
        ("5", None),
        ("", None),
    ],
)
def test_the_last_box_is_opened_with_its_braces_matched(text: str, inside: str | None) -> None:
    assert answers.boxed(text) == inside


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{18}", 1.0),
        (r"\boxed{\$18.00}", 1.0),
        (r"\boxed{18 \text{ dollars}}", 1.0),
        (r"\boxed{1,8}", 1.0),
        (r"\boxed{19}", 0.0),
        (r"\boxed{eighteen}", 0.0),
        ("18", 0.0),
        (r"\boxed{18} or \boxed{2}", 0.0),
    ],
)
def test_a_boxed_number_is_compared_as_a_number(text: str, right: float) -> None:
    assert answers.same_boxed_number({"answer": "18"}, [text]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", 1.0),
        (r"\boxed{\frac12}", r"\frac{1}{2}", 1.0),
        (r"\boxed{0.50}", "0.5", 1.0),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"(3,\frac{\pi}{2})", 1.0),
        (r"\boxed{2}", r"\frac{1}{2}", 0.0),
        ("one half", r"\frac{1}{2}", 0.0),
    ],
)
def test_a_boxed_expression_is_compared_as_the_harness_compares_math(text: str, gold: str, right: float) -> None:
    assert answers.same_boxed_expression({"answer": gold}, [text]) == {"exact_match": right}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (r"\boxed{B}", 1.0),
        (r"\boxed{(B)}", 1.0),
        (r"\boxed{\text{B}}", 1.0),
        (r"\boxed{B. 12 mills}", 1.0),
        (r"\boxed{Bees}", 0.0),
        (r"\boxed{A}", 0.0),
        (r"\boxed{b}", 0.0),
        ("B", 0.0),
    ],
)
def test_a_boxed_letter_names_an_option(text: str, right: float) -> None:
    assert answers.same_boxed_letter({"answer": "B"}, [text]) == {"exact_match": right}
