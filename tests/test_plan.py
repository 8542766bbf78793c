"""The plan: what is missing and why, in which order, in which packs, at what cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest

from cpt_lab import plan
from cpt_lab.disk import MIXED, STATES, WEIGHTS
from cpt_lab.interventions import Rewind
from cpt_lab.plan import Plan
from cpt_lab.rates import DEVICES, Rate, Rates, work
from cpt_lab.specs import Evaluation, Patched, Probe, Ranking, Spec, SpectralPart, TopOf, closure, key
from cpt_lab.store import State, Status
from cpt_lab.study import Point
from spec_cases import (
    BASE,
    DELTA_NORM,
    EVALUATION,
    FOLDER,
    INTERMEDIATE,
    MATH,
    PATCHED,
    PRETRAINED,
    PROTOCOL,
    RANDOM,
    SHAPE,
    SPECTRA,
    TUNED,
    rewound,
    rewound_heads,
)

RATE = Rates(Rate(flops=1e12, train_share=0.5, read_share=0.25, spectra_share=0.01))
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
    return plan.make(points, status=status, orders={}, workers=workers, rates=RATE)


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


def test_the_layers_of_a_table_are_shared_out_to_workers_and_so_are_its_columns() -> None:
    made = planned(SPECTRA.but(checkpoint=BASE, against=None), workers=3)
    parts, columns = ([step.key for step in made.stages()[stage]] for stage in ("spectra", "tables"))
    assert len(parts) == 2 * 3  # two layers of heads, attention, mlp
    for names in (parts, columns):
        shares = [[name for name in pack if name in names] for pack in made.packs]
        assert sorted(name for share in shares for name in share) == sorted(names)
        assert all(shares)


def test_only_points_are_packed_and_the_plan_keeps_to_its_workers() -> None:
    points = evaluations(5)
    made = planned(*points, TUNED, workers=2)
    assert [len(names) for names in made.packs] == [2, 3]
    assert {name for names in made.packs for name in names} == {key(each) for each in points}


# ------------------------------------------------------------------------------------------------------------------- cost


def test_the_cost_of_a_plan_is_that_of_its_steps() -> None:
    steps = [TUNED, EVALUATION, *(part(scope).but(layer=layer) for scope in ("heads", "attention", "mlp") for layer in range(2))]
    assert planned(EVALUATION).gpu_hours == pytest.approx(sum(RATE.seconds(step) / 3600 for step in steps))


def test_what_another_launch_builds_now_is_not_paid_for_here() -> None:
    made = planned(TUNED, status=looks({key(TUNED): Status(State.RUNNING)}))
    assert made.gpu_hours == 0.0
    assert [step.reason for step in made.stages()["cpt"]] == ["another worker builds it now"]


def test_points_are_counted_by_what_becomes_of_them() -> None:
    points = evaluations(5)
    states = [State.DONE, State.RUNNING, State.BLOCKED, State.FAILED, State.PLANNED]
    known = {key(spec): Status(state) for spec, state in zip(points, states, strict=True)}
    assert planned(*points, status=looks(known)).counts() == {"done": 1, "running elsewhere": 1, "to do": 2, "blocked before": 1}


def test_a_step_that_needs_no_gpu_or_runs_on_a_cpu_costs_no_gpu_hours() -> None:
    made = planned(MATH)
    assert [step.on_gpu for step in made.steps] == [False]
    here = plan.make([point(TUNED)], status=NOTHING_DONE, orders={}, workers=1, rates=Rates(DEVICES["cpu"]))
    assert here.gpu_hours == 0.0
    assert here.hours == pytest.approx(Rates(DEVICES["cpu"]).seconds(TUNED) / 3600)


def test_the_time_on_the_wall_is_that_of_the_stages_one_after_the_other_shared_by_the_workers() -> None:
    points = evaluations(6)
    done_before = looks(done(TUNED, BASE, PROTOCOL))
    seconds = RATE.seconds(points[0])
    hours = [planned(*points, status=done_before, workers=6).wall_hours(workers) for workers in (1, 2, 6, 100)]
    assert hours == pytest.approx([6 * seconds / 3600, 3 * seconds / 3600, seconds / 3600, seconds / 3600])
    trained = planned(*points, status=looks(done(BASE, PROTOCOL)), workers=6).wall_hours(100)
    assert trained == pytest.approx((RATE.seconds(TUNED) + seconds) / 3600)


def test_what_stays_on_the_disk_is_the_sum_of_the_steps_and_what_it_needs_more_goes_again() -> None:
    made = planned(PATCHED, EVALUATION)
    parts = [part for step in made.steps for part in step.written]
    assert made.kept == sum(part.bytes for part in parts if part.stays)
    assert made.kept > 4 * TUNED.shape.parameters + 4 * PATCHED.shape.parameters
    assert made.kept < sum(made.room.values()) <= sum(part.bytes for part in parts)
    assert planned(EVALUATION, status=looks(done(TUNED, BASE, PROTOCOL))).room == {}


def room(specs: list[Spec], *, workers: int, most_tasks: int | None) -> dict[str, int]:
    points = [point(spec, f"point {index}") for index, spec in enumerate(specs)]
    return plan.make(points, status=NOTHING_DONE, orders={}, workers=workers, rates=RATE, most_tasks=most_tasks).room


def test_on_a_cluster_each_training_run_needs_its_room_at_the_same_time_as_far_as_the_site_lets_them() -> None:
    runs: list[Spec] = [TUNED.but(recipe=TUNED.recipe.but(seed=seed)) for seed in range(3)]
    states = [room(runs, workers=1000, most_tasks=most)[STATES] for most in (1, 2, 1000)]
    assert states == [states[0], 2 * states[0], 3 * states[0]]
    assert room(runs, workers=1, most_tasks=1000)[STATES] == states[2]  # the user's packs are none of training runs
    assert room(runs, workers=2, most_tasks=None)[STATES] == states[1]  # here the same workers do all


def test_tasks_of_a_stage_are_its_runs_its_packs_or_one() -> None:
    runs = [TUNED.but(recipe=TUNED.recipe.but(seed=seed)) for seed in range(3)]
    assert plan.tasks("cpt", [*runs, INTERMEDIATE], ()) == 3
    assert plan.tasks("cpt", [INTERMEDIATE], ()) == 1
    scored, packs = evaluations(3), [(key(one),) for one in evaluations(3)]
    assert plan.tasks("evaluate", scored[:2], packs) == 2
    assert plan.tasks("data", [MATH, PROTOCOL], packs) == 1


def test_weights_that_a_finished_run_kept_take_no_room_and_others_are_trained_again() -> None:
    look = looks(done(*closure([TUNED])))
    kept, again = (
        plan.make([point(INTERMEDIATE)], status=look, orders={}, workers=1, kept=lambda _, known=known: known) for known in (True, False)
    )
    assert (kept.room, kept.kept) == ({}, 0)
    assert set(again.room) == {WEIGHTS, MIXED, STATES}


def test_a_run_that_several_devices_train_together_is_done_sooner_and_costs_the_same() -> None:
    alone = plan.make([point(TUNED)], status=NOTHING_DONE, orders={}, workers=1, rates=RATE)
    together = replace(alone, devices={"cpt": 16})
    assert together.gpu_hours == alone.gpu_hours
    assert together.wall_hours(1) == pytest.approx(alone.wall_hours(1) / 16)


@pytest.mark.parametrize(("minutes", "packs"), [(0.5, 8), (1, 8), (2, 4), (3, 3), (8, 1), (1000, 1)])
def test_packs_are_as_many_as_take_the_minutes_they_are_asked_to_take(minutes: float, packs: int) -> None:
    one_minute = Rates(RATE.device, of_group={work(evaluations(1)[0]).group: 60.0})
    points = [point(spec, f"point {index}") for index, spec in enumerate(evaluations(8))]
    made = plan.make(points, status=looks(done(TUNED, BASE, PROTOCOL)), orders={}, workers=2, rates=one_minute, pack_minutes=minutes)
    assert len(made.packs) == packs
    assert made.timed("measured") == 8


# ------------------------------------------------------------------------------------------------------------------- size


def test_while_nothing_was_measured_a_stage_gets_several_packs_however_little_it_seems_to_be() -> None:
    points = [point(spec, f"point {index}") for index, spec in enumerate(evaluations(8))]
    look = looks(done(TUNED, BASE, PROTOCOL))
    packs = [len(plan.make(points, status=look, orders={}, workers=count, pack_minutes=1000).packs) for count in (1000, 3)]
    assert packs == [8, 3]


@pytest.mark.slow
def test_the_probes_of_a_greedy_ranking_are_needs_of_one_point_looked_at_once_each() -> None:
    shape = SHAPE.but(num_layers=100, num_heads=100, num_kv_heads=100)
    tuned, base = FOLDER.but(shape=shape), FOLDER.but(shape=shape, weights_digest="base")
    probe = Probe(tuned=tuned, base=base, protocol=PROTOCOL)
    greedy = Ranking(criterion="greedy", direction="descending", shape=shape, probe=probe)
    half = Rewind(base=base, select=TopOf(ranking=greedy, fraction=0.5))
    wanted = Evaluation(checkpoint=Patched(tuned=tuned, interventions=(half,)), protocol=PROTOCOL)
    asked: Counter[str] = Counter()

    def status(spec: Spec) -> Status:
        asked[key(spec)] += 1
        return Status(State.PLANNED)

    made = plan.make([point(wanted)], status=status, orders={}, workers=16)
    assert len(made.stages()["probe"]) == 10_001  # every head alone, and the tuned model itself
    assert set(asked.values()) == {1}
    assert sum(map(len, made.packs)) == 10_002
