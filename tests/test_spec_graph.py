"""What specs need, and the simplest form of a point: the graph that specs are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spec_cases as cases
from cpt_lab.specs import Evaluation, Parts, TopOf, closure, from_parts, key, parse, rankings_of, read_parts, settled
from spec_cases import BASE, DELTA_NORM, EVALUATION, FOLDER, ONE_OF_EACH, PROTOCOL, RANDOM, TUNED, rewound, rewound_heads

TOP_OF = TopOf(ranking=RANDOM, fraction=0.25)


@pytest.mark.parametrize(("fraction", "count"), [(0, 0), (1 / 16, 1), (3 / 16, 2), (5 / 16, 3), (0.25, 2), (1, 8)])
def test_a_fraction_of_the_heads_is_rounded_with_halves_up(fraction: float, count: int) -> None:
    assert TOP_OF.but(fraction=fraction).count == count  # of 8 heads


@given(st.floats(0, 1))
def test_the_number_of_heads_is_the_whole_number_nearest_to_the_fraction(fraction: float) -> None:
    assert abs(TOP_OF.but(fraction=fraction).count - 8 * fraction) <= 0.5


def test_rewinding_no_head_is_the_tuned_checkpoint_itself() -> None:
    assert settled(rewound(RANDOM, 0)) == TUNED
    assert settled(rewound_heads()) == TUNED
    assert key(settled(Evaluation(checkpoint=rewound(DELTA_NORM, 0), protocol=PROTOCOL))) == key(
        Evaluation(checkpoint=TUNED, protocol=PROTOCOL)
    )


def test_rewinding_every_head_is_one_value_whatever_the_ranking() -> None:
    by_name = rewound_heads(*((layer, head) for layer in range(2) for head in range(4)))
    assert key(settled(rewound(RANDOM, 1))) == key(settled(rewound(DELTA_NORM, 1))) == key(by_name)
    assert not list(rankings_of(settled(rewound(RANDOM, 1))))


def test_the_same_heads_chosen_by_two_rankings_are_one_value() -> None:
    rest = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3))
    orders = {key(RANDOM): ((0, 3), (1, 0), *rest), key(DELTA_NORM): ((1, 0), (0, 3), *rest)}
    assert settled(rewound(RANDOM), orders) == settled(rewound(DELTA_NORM), orders) == rewound_heads((0, 3), (1, 0))
    assert key(settled(rewound(RANDOM, 1 / 8), orders)) != key(settled(rewound(DELTA_NORM, 1 / 8), orders))


def test_a_point_whose_ranking_is_not_known_stays_as_it_is() -> None:
    point = Evaluation(checkpoint=rewound(DELTA_NORM), protocol=PROTOCOL)
    assert settled(point, {key(RANDOM): ()}) == point
    assert list(rankings_of(point)) == [DELTA_NORM]


def test_settling_twice_is_settling_once() -> None:
    orders = {key(RANDOM): tuple((layer, head) for layer in range(2) for head in range(4))}
    for spec in (*ONE_OF_EACH, rewound(RANDOM), rewound(RANDOM, 0), rewound(RANDOM, 1)):
        once = settled(spec, orders)
        assert settled(once, orders) == once


@given(st.permutations(RANDOM.units), st.integers(0, len(RANDOM.units)))
def test_a_settled_point_reads_back_as_itself_with_its_key(order: list[tuple[int, int]], count: int) -> None:
    point = Evaluation(checkpoint=rewound(RANDOM, count / len(order)), protocol=PROTOCOL)
    found = settled(point, {key(RANDOM): tuple(order)})
    again = parse(found.model_dump())
    assert again == found
    assert key(again) == key(found)
    chosen = {change.select.heads for change in getattr(found.checkpoint, "interventions", ())}
    assert chosen == ({tuple(sorted(order[:count]))} if count else set())


def test_a_point_that_is_as_simple_as_can_be_is_settled_as_it_is() -> None:
    point = Evaluation(checkpoint=rewound_heads((0, 1)), protocol=PROTOCOL)
    assert settled(point) is point


def test_every_kind_of_spec_is_read_back_from_parts_that_are_written_once() -> None:
    written = Parts()
    texts = json.dumps([written.write(spec) for spec in (*ONE_OF_EACH, *ONE_OF_EACH)])
    parts = read_parts(json.loads(json.dumps(written.written)))
    again = [from_parts(data, parts) for data in json.loads(texts)]
    assert again == [*ONE_OF_EACH, *ONE_OF_EACH]
    assert list(map(key, again)) == list(map(key, (*ONE_OF_EACH, *ONE_OF_EACH)))
    assert len(parts) == len({spec.model_dump_json() for spec in parts})


def test_points_that_are_read_share_their_checkpoints_and_what_is_no_part_of_a_key_may_differ() -> None:
    moved = FOLDER.but(path="/elsewhere")
    points = [Evaluation(checkpoint=checkpoint, protocol=PROTOCOL) for checkpoint in (FOLDER, moved, FOLDER)]
    written = Parts()
    data = [written.write(point) for point in points]
    parts = read_parts(written.written)
    first, other, third = (from_parts(one, parts) for one in data)
    assert (first, other, third) == tuple(points)
    assert isinstance(first, Evaluation)
    assert isinstance(third, Evaluation)
    assert first.checkpoint is third.checkpoint
    assert first.protocol is third.protocol


def test_a_closure_holds_each_spec_once_and_needs_before_what_needs_them() -> None:
    found = [key(spec) for spec in closure([EVALUATION, cases.PATCHED, EVALUATION])]
    assert len(found) == len(set(found))
    assert {key(spec) for spec in (cases.MATH, cases.TEXT, cases.HUB_TOKENIZER, BASE, TUNED, cases.SPECTRA, DELTA_NORM)} <= set(found)
    for spec in closure([EVALUATION, cases.PATCHED]):
        assert all(found.index(key(need)) < found.index(key(spec)) for need in spec.needs())


def test_a_point_needs_its_weights_its_ranking_and_its_protocol_but_not_a_patched_copy() -> None:
    assert {key(need) for need in EVALUATION.needs()} == {key(PROTOCOL), key(TUNED), key(BASE), key(DELTA_NORM)}
    assert EVALUATION.loaded == TUNED
