"""How often something is measured: never more than its share of the time, and at steps that a faster pace has too."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cpt_lab.training.pace import Pace


def simulated(pace: Pace, *, steps: int, cost: float, step: float = 1.0) -> list[int]:
    """The steps that are measured, with a first step that is not counted, as it compiles."""
    measured = []
    for number in range(steps + 1):
        if number > 1:
            pace.count_step(step)
        if number % pace.interval == 0:
            measured.append(number)
            pace.count_measurement(cost)
    return measured


@given(st.integers(1, 50), st.floats(0.001, 100), st.floats(0.01, 0.5))
@example(every=1, cost=100.0, share=0.01)  # measured at steps 0, 1 and 2: the first step that counts is the second
@example(every=2, cost=100.0, share=0.01)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_measuring_takes_no_more_than_its_share_once_a_measurement_knows_of_a_step(every: int, cost: float, share: float) -> None:
    pace = Pace(every, share)
    measured = simulated(pace, steps=3000, cost=cost)
    later = sum(step > max(every, 2) for step in measured)  # when to measure until then was chosen before a step was counted
    assert later * cost <= share * (later * cost + 3000) * (1 + 1e-9)


def test_what_costs_little_is_measured_as_often_as_asked() -> None:
    assert simulated(Pace(25, 0.05), steps=200, cost=1.0) == list(range(0, 201, 25))


def test_an_interval_is_doubled_until_a_measurement_takes_its_share() -> None:
    pace = Pace(25, 0.05)
    measured = simulated(pace, steps=1000, cost=3.0)  # 3 x 0.95 / 0.05 = 57 steps
    assert pace.interval == 100
    assert measured == [0, 25, *range(100, 1001, 100)]


def test_an_interval_shrinks_again_when_measuring_gets_cheaper() -> None:
    pace = Pace(10, 0.5)
    for seconds in (100.0, 100.0):
        pace.count_step(1.0)
        pace.count_measurement(seconds)
    assert pace.interval == 160
    for _ in range(2):  # of the last three, whose median counts
        pace.count_measurement(1.0)
    assert pace.interval == 10


def test_a_single_hiccup_changes_nothing() -> None:
    pace = Pace(10, 0.5)
    for seconds in (1.0, 1.0, 1000.0):
        pace.count_step(1.0)
        pace.count_measurement(seconds)
    assert pace.interval == 10


def test_another_attempt_goes_on_at_the_pace_of_the_last() -> None:
    pace, again = Pace(25, 0.05), Pace(25, 0.05)
    simulated(pace, steps=400, cost=3.0)
    again.restore(pace.state())
    assert again == pace
    assert again.interval == 100


def test_who_asks_for_another_pace_gets_it_though_an_attempt_had_one() -> None:
    pace, other = Pace(25, 0.05), Pace(25, 0.2)
    simulated(pace, steps=400, cost=3.0)
    other.restore(pace.state())
    assert other == Pace(25, 0.2)


def test_the_share_that_was_spent_is_that_of_both_together() -> None:
    pace = Pace(1, 0.5)
    pace.count_step(3.0)
    pace.count_measurement(1.0)
    assert pace.spent == pytest.approx(0.25)
