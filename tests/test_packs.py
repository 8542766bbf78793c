"""Packs: every point once, shared out by time, neighbours alike."""

from __future__ import annotations

import json
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.packs import by_edit, pack
from cpt_lab.specs import SCHEMA, Evaluation, Ranking, Spec, canonical_json, identity, key
from spec_cases import DELTA_NORM, MATH, ONE_OF_EACH, PROTOCOL, RANDOM, TEXT, TUNED, rewound, rewound_heads

HEADS = [(layer, head) for layer in range(2) for head in range(4)]
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


def evaluations(count: int, *, protocol: int = 0) -> list[Evaluation]:
    scored = PROTOCOL.but(seed=protocol)
    return [Evaluation(checkpoint=rewound_heads(*HEADS[: index + 1]), protocol=scored) for index in range(count)]


def curve(ranking: Ranking) -> list[Spec]:
    return [Evaluation(checkpoint=rewound(ranking, fraction), protocol=PROTOCOL) for fraction in FRACTIONS]


def place(point: Spec) -> tuple[str, str, int | None, float]:
    """What a point of a curve is, in the words of its sweep."""
    assert isinstance(point, Evaluation)
    select = point.checkpoint.interventions[0].select  # type: ignore[union-attr]
    return select.ranking.criterion, select.ranking.direction, select.ranking.seed, select.fraction


@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(1, 40))
def test_packs_hold_every_point_once_are_balanced_to_one_never_empty_and_at_most_as_many_as_workers(sizes: list[int], workers: int) -> None:
    points = [each for protocol, count in enumerate(sizes) for each in evaluations(count, protocol=protocol)]
    packs = pack(points, workers)
    names = [name for names in packs for name in names]
    assert sorted(names) == sorted(key(each) for each in points)
    assert len(packs) == min(workers, len(points))
    assert all(packs)
    lengths = [len(names) for names in packs]
    assert not lengths or max(lengths) - min(lengths) <= 1


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=24), st.integers(1, 30))
def test_no_pack_takes_longer_than_an_even_share_and_its_longest_point(seconds: list[float], workers: int) -> None:
    points = [point for protocol in range(3) for point in evaluations(8, protocol=protocol)][: len(seconds)]
    known = {key(point): took for point, took in zip(points, seconds, strict=True)}
    packs = pack(points, workers, seconds=known)
    assert sorted(name for names in packs for name in names) == sorted(known)
    assert len(packs) == min(workers, len(points))
    assert all(packs)
    least = 1e-3 * max(seconds) * len(seconds)  # what takes no time counts as a thousandth of the longest
    for names in packs:
        assert sum(known[name] for name in names) <= (sum(seconds) + least) / len(packs) + max(seconds) + 1e-6 * sum(seconds)


def test_one_long_point_is_alone_and_the_short_ones_share_a_pack() -> None:
    points = evaluations(4)
    seconds = dict.fromkeys(map(key, points), 1.0) | {key(points[3]): 100.0}
    assert pack(points, 2, seconds=seconds) == (tuple(map(key, points[:3])), (key(points[3]),))


@given(st.permutations([each for protocol in range(3) for each in evaluations(4, protocol=protocol)]), st.integers(1, 6))
def test_points_that_share_a_model_and_a_protocol_lie_together(points: list[Evaluation], workers: int) -> None:
    in_packs = [name for names in pack(points, workers) for name in names]
    protocol_of = {key(each): each.protocol.seed for each in points}
    assert len([seed for seed, _ in groupby(protocol_of[name] for name in in_packs)]) == 3


@given(st.permutations(evaluations(8)))
def test_edits_of_explicit_heads_follow_each_other_by_one_head(points: list[Evaluation]) -> None:
    sizes = [len(point.checkpoint.interventions[0].select.heads) for point in by_edit(points, lambda point: point)]  # type: ignore[union-attr]
    assert sizes == list(range(1, 9))


@given(st.permutations(range(20)))
def test_a_curve_is_gone_through_by_its_fractions_and_the_next_one_back(order: list[int]) -> None:
    rankings = (DELTA_NORM, RANDOM, RANDOM.but(seed=7), DELTA_NORM.but(direction="descending"))
    points = [point for ranking in rankings for point in curve(ranking)]
    found = [place(points[index]) for index in by_edit(order, lambda index: points[index])]
    curves = [[fraction for *_, fraction in group] for _, group in groupby(found, lambda row: row[:3])]
    assert curves == [list(FRACTIONS), list(FRACTIONS)[::-1]] * 2
    steps = [abs(one[-1] - other[-1]) for one, other in pairwise(found)]
    assert max(steps) == 0.25


def test_points_whose_ranking_is_known_keep_the_places_of_their_curve() -> None:
    points = evaluations(4)
    places = {key(point): place for place, point in enumerate(reversed(points))}
    assert pack(points, 1, places=places) == (tuple(key(point) for point in reversed(points)),)


def test_steps_that_edit_nothing_keep_their_order() -> None:
    assert by_edit([TUNED, MATH, TEXT], lambda spec: spec) == [TUNED, MATH, TEXT]


@pytest.mark.parametrize("workers", [0, -1])
def test_without_a_worker_nothing_can_be_packed(workers: int) -> None:
    with pytest.raises(ValueError, match="needs at least one worker"):
        pack(evaluations(2), workers)


@pytest.mark.parametrize("spec", ONE_OF_EACH, ids=lambda spec: type(spec).__name__)
def test_the_canonical_text_that_parts_keep_is_that_of_the_whole(spec: Spec) -> None:
    whole = {"schema": SCHEMA, "spec": identity(spec)}
    assert canonical_json(spec) == json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
