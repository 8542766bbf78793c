"""The plan: what is missing and why, in which order, in which packs, at what cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab import plan
from cpt_lab.plan import Plan, Rate, gpu_hours, pack
from cpt_lab.specs import Evaluation, Mixture, Part, Spec, SpectralPart, closure, key
from cpt_lab.store import State, Status
from cpt_lab.study import Point
from spec_cases import (
    BASE,
    DELTA_NORM,
    EVALUATION,
    HARNESS,
    MATH,
    PRETRAINED,
    PROTOCOL,
    RANDOM,
    SHAPE,
    SPECTRA,
    SUMS,
    TUNED,
    rewound,
    rewound_heads,
)

RATE = Rate(flops=1e12, train_share=0.5, read_share=0.25, spectra_share=0.01)
ORDER = tuple((layer, head) for layer in (1, 0) for head in range(4))
Look = Callable[[Spec], Status]


def looks(states: dict[str, Status]) -> Look:
    """What a store with these states would say."""
    return lambda spec: states.get(key(spec), Status(State.PLANNED))


def done(*specs: Spec) -> dict[str, Status]:
    return {key(spec): Status(State.DONE) for spec in specs}


def point(spec: Spec, name: str = "point") -> Point:
    return Point(name=name, varies={}, config={}, spec=spec)


NOTHING_DONE = looks({})


def planned(*specs: Spec, status: Look = NOTHING_DONE, workers: int = 2) -> Plan:
    points = [point(spec, f"point {index}") for index, spec in enumerate(specs)]
    return plan.make(points, status=status, orders={}, workers=workers, rate=RATE)


def evaluations(count: int, *, protocol: int = 0) -> list[Evaluation]:
    scored = PROTOCOL.but(seed=protocol)
    heads = [(layer, head) for layer in range(2) for head in range(4)]
    return [Evaluation(checkpoint=rewound_heads(*heads[: index + 1]), protocol=scored) for index in range(count)]


def part(scope: Literal["heads", "attention", "mlp"]) -> SpectralPart:
    return SpectralPart(checkpoint=TUNED, against=BASE, layer=0, scope=scope, of="values")


# ------------------------------------------------------------------------------------------------------------------ steps


def test_with_nothing_done_the_plan_is_the_whole_closure_with_needs_first() -> None:
    made = planned(EVALUATION)
    assert [step.key for step in made.steps] == [key(spec) for spec in closure([EVALUATION])]
    assert made.done == ()
    assert list(made.stages()) == ["data", "cpt", "spectra", "tables", "rank", "evaluate"]


def test_a_base_that_is_trained_here_comes_a_stage_before_its_cpt() -> None:
    made = planned(TUNED.but(start=PRETRAINED))
    assert list(made.stages()) == ["data", "pretrain", "cpt"]
    assert [step.key for step in made.stages()["pretrain"]] == [key(PRETRAINED)]


def test_what_is_done_is_not_a_step_and_its_needs_are_not_even_asked_for() -> None:
    asked = []

    def status(spec: Spec) -> Status:
        asked.append(key(spec))
        return looks(done(TUNED, BASE, DELTA_NORM, PROTOCOL))(spec)

    made = planned(EVALUATION, status=status)
    assert [step.key for step in made.steps] == [key(EVALUATION)]
    assert key(SPECTRA) not in asked
    assert key(MATH) not in asked
    assert len(asked) == len(set(asked))


def test_a_study_that_is_done_has_no_steps_no_packs_and_no_cost() -> None:
    made = planned(TUNED, status=looks(done(TUNED)))
    assert (made.done, made.steps, made.packs, made.gpu_hours, made.todo) == (("point 0",), (), (), 0.0, 0)


def test_points_of_the_same_weights_are_one_step() -> None:
    every = [Evaluation(checkpoint=rewound(ranking, 1.0), protocol=PROTOCOL) for ranking in (RANDOM, DELTA_NORM)]
    none = [Evaluation(checkpoint=rewound(ranking, 0.0), protocol=PROTOCOL) for ranking in (RANDOM, DELTA_NORM)]
    made = planned(*every, *none)
    assert len(made.points) == 4
    assert len(made.stages()["evaluate"]) == 2
    assert "rank" not in made.stages()


def test_points_are_settled_by_the_rankings_that_are_known() -> None:
    points = [point(Evaluation(checkpoint=rewound(ranking), protocol=PROTOCOL), ranking.criterion) for ranking in (RANDOM, DELTA_NORM)]
    orders = {key(RANDOM): ORDER, key(DELTA_NORM): ORDER}
    result = Evaluation(checkpoint=rewound_heads((1, 0), (1, 1)), protocol=PROTOCOL)
    made = plan.make(points, status=looks(done(result)), orders=orders, workers=1)
    assert made.done == ("random", "delta_norm")
    assert made.steps == ()


@pytest.mark.parametrize("state", [state for state in State if state is not State.DONE])
def test_every_state_but_done_is_a_step_with_its_reason(state: State) -> None:
    reasons = {
        State.PLANNED: "not built yet",
        State.QUEUED: "not built yet",
        State.RUNNING: "another worker builds it now",
        State.FAILED: "failed before: no numbers",
        State.PREEMPTED: "was preempted",
        State.TIMEOUT: "ran out of time",
        State.LOST: "its worker died",
        State.CANCELLED: "was cancelled",
        State.BLOCKED: "waited for something that failed: no numbers",
    }
    made = planned(MATH, status=looks({key(MATH): Status(state, "no numbers")}))
    assert [(step.key, step.reason) for step in made.steps] == [(key(MATH), reasons[state])]


# ------------------------------------------------------------------------------------------------------------------ packs


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


@given(st.permutations([each for protocol in range(3) for each in evaluations(4, protocol=protocol)]), st.integers(1, 6))
def test_points_that_share_a_model_and_a_protocol_lie_together_in_their_order(points: list[Evaluation], workers: int) -> None:
    in_packs = [name for names in pack(points, workers) for name in names]
    protocol_of = {key(each): each.protocol.seed for each in points}
    assert len([seed for seed, _ in groupby(protocol_of[name] for name in in_packs)]) == 3
    for seed in range(3):
        assert [name for name in in_packs if protocol_of[name] == seed] == [key(each) for each in points if each.protocol.seed == seed]


def test_the_layers_of_a_table_are_shared_out_to_workers_and_so_are_its_columns() -> None:
    made = planned(SPECTRA.but(checkpoint=BASE, against=None), workers=3)
    parts, columns = ([step.key for step in made.stages()[stage]] for stage in ("spectra", "tables"))
    assert len(parts) == 2 * 3  # two layers of heads, attention, mlp
    assert [[name for name in names if name in parts] for names in made.packs] == [parts[:2], parts[2:4], parts[4:]]
    assert sum(made.packs, ()) == (*parts[:2], columns[0], *parts[2:4], columns[1], *parts[4:], *columns[2:])


@pytest.mark.parametrize("workers", [0, -1])
def test_without_a_worker_nothing_can_be_packed(workers: int) -> None:
    with pytest.raises(ValueError, match="needs at least one worker"):
        pack(evaluations(2), workers)


def test_only_points_are_packed_and_the_plan_keeps_to_its_workers() -> None:
    points = evaluations(5)
    made = planned(*points, TUNED, workers=2)
    assert [len(names) for names in made.packs] == [2, 3]
    assert {name for names in made.packs for name in names} == {key(each) for each in points}


# ------------------------------------------------------------------------------------------------------------------- cost


def test_training_costs_six_flops_per_weight_and_token() -> None:
    tokens = 10_000_000
    trained = TUNED.but(mixture=Mixture(name="m", parts=(Part(corpus=MATH, tokens=tokens),)))
    assert gpu_hours(trained, RATE) == pytest.approx(6 * SHAPE.parameters * tokens / (0.5 * 1e12) / 3600)


@given(st.integers(256, 10**12), st.integers(2, 100))
def test_training_cost_is_proportional_to_tokens(tokens: int, factor: int) -> None:
    def cost(budget: int) -> float:
        return gpu_hours(TUNED.but(mixture=Mixture(name="m", parts=(Part(corpus=MATH, tokens=budget),))), RATE)

    assert cost(tokens) > 0
    assert cost(factor * tokens) == pytest.approx(factor * cost(tokens))


def test_evaluation_cost_is_proportional_to_the_items_and_the_same_for_a_patched_model() -> None:
    def cost(items: int, *, patched: bool = False) -> float:
        protocol = PROTOCOL.but(tasks=(SUMS.but(items=items), HARNESS.but(limit=items)))
        return gpu_hours(Evaluation(checkpoint=rewound_heads((0, 0)) if patched else TUNED, protocol=protocol), RATE)

    assert cost(3) > 0
    assert cost(300) == pytest.approx(100 * cost(3))
    assert cost(3, patched=True) == cost(3)


def test_a_decomposition_costs_its_gram_matrices_and_their_eigenvalues() -> None:
    heads = (2 * 32 * 8**2 + 4 / 3 * 8**3) * 16  # q, k, v and o of four heads, 32 x 8
    mlp = (2 * 48 * 32**2 + 4 / 3 * 32**3) * 3  # 48 x 32
    assert gpu_hours(part("heads"), RATE) == pytest.approx(heads / (0.01 * 1e12) / 3600)
    assert gpu_hours(part("mlp"), RATE) == pytest.approx(mlp / (0.01 * 1e12) / 3600)
    assert gpu_hours(part("mlp").but(of="null", seed=0), RATE) == gpu_hours(part("mlp"), RATE)
    assert gpu_hours(part("mlp").but(of="pair"), RATE) > 3 * gpu_hours(part("mlp"), RATE)


def test_what_reads_no_tokens_costs_nothing_and_the_plan_sums_its_steps() -> None:
    assert gpu_hours(SPECTRA, RATE) == gpu_hours(MATH, RATE) == 0.0
    steps = [TUNED, EVALUATION, *(part(scope).but(layer=layer) for scope in ("heads", "attention", "mlp") for layer in range(2))]
    assert planned(EVALUATION).gpu_hours == pytest.approx(sum(gpu_hours(step, RATE) for step in steps))
