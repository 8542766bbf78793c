"""What a plan costs, in words, and the refusal of more than a budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cpt_lab import costs, plan
from cpt_lab.plan import Plan
from cpt_lab.rates import DEVICES, Rates, work
from cpt_lab.site import Site
from cpt_lab.specs import Evaluation, Spec, key
from cpt_lab.store import State, Status
from cpt_lab.study import Point
from spec_cases import BASE, FOLDER, PATCHED, PROTOCOL, TUNED, rewound_heads

POINTS = [Evaluation(checkpoint=rewound_heads(*((0, head) for head in range(count + 1))), protocol=PROTOCOL) for count in range(4)]
DONE = {key(spec) for spec in (TUNED, BASE, PROTOCOL)}
HOUR = {work(POINTS[0]).group: 3600.0}


def point(spec: Spec) -> Point:
    return Point(name=key(spec), varies={}, config={}, spec=spec)


def planned(*specs: Spec, rates: Rates, workers: int = 2, status: Callable[[Spec], Status] | None = None) -> Plan:
    known = status or (lambda spec: Status(State.DONE if key(spec) in DONE else State.PLANNED))
    return plan.make([point(spec) for spec in specs], status=known, orders={}, workers=workers, rates=rates)


def test_a_plan_says_its_packs_its_cost_its_source_and_its_time() -> None:
    lines = costs.lines(planned(*POINTS, rates=Rates(DEVICES["A100"], of_group=HOUR)), 2)
    assert lines == [
        "packs: evaluate 2 of 2 (about 120 min each); points of one model and protocol lie together",
        "cost: about 4.00 GPU hours, 4 of 4 steps as earlier ones took, the rest from FLOP counts: an A100 at 40 % of its peak in "
        "training, 15 % in evaluation, 0.3 % in eigenvalues",
        "time: about 2.0 hours with 2 at a time, once they run",
    ]


def test_on_a_machine_without_gpus_hours_are_those_of_cores() -> None:
    lines = costs.lines(planned(*POINTS, rates=Rates(DEVICES["cpu"], of_group=HOUR)), 4)
    assert "about 4.00 core hours" in lines[1]
    assert lines[2] == "time: about 2.0 hours with 4 at a time, once they run"


def test_what_costs_nothing_is_not_spoken_of() -> None:
    assert costs.lines(planned(rates=Rates()), 2) == []


def test_the_disk_is_spoken_of_where_weights_are_written() -> None:
    big = FOLDER.but(shape=FOLDER.shape.but(vocab_size=1_000_000))
    lines = costs.lines(planned(PATCHED.but(tuned=big), rates=Rates()), 1)
    assert lines[-1] == "disk: about 0.1 GB will be written"


def test_more_than_the_budget_is_refused_and_less_is_not() -> None:
    todo = planned(*POINTS, rates=Rates(of_group=HOUR))
    costs.check_budget(todo, None)
    costs.check_budget(todo, 4.0)
    with pytest.raises(ValueError, match=r"about 4.0 GPU hours and budget.gpu_hours allows 3.9: raise it"):
        costs.check_budget(todo, 3.9)


@pytest.mark.parametrize(
    ("site", "where", "here", "device"),
    [
        (Site(name="a", gpu="A100", gpus_per_node=8), "slurm", "", "A100"),
        (Site(name="a", gpus_per_node=8), "slurm", "", "H100"),
        (Site(name="a"), "slurm", "", "cpu"),
        (Site(name="local"), "local", "", "cpu"),
        (Site(name="local"), "local", "NVIDIA A100-SXM4-80GB", "A100"),
        (Site(name="local"), "local", "NVIDIA GeForce RTX 4090", "H100"),
    ],
)
def test_estimates_are_for_the_sites_gpu_or_for_what_is_here(
    site: Site, where: str, here: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "gpu_name", lambda: here)
    assert costs.device(site, where, [point(spec) for spec in POINTS]) == device


def test_who_plans_a_large_model_on_a_machine_without_a_gpu_will_run_it_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "gpu_name", lambda: "")
    large = FOLDER.but(shape=FOLDER.shape.but(vocab_size=10_000_000))
    assert costs.device(Site(name="local"), "local", [point(Evaluation(checkpoint=large, protocol=PROTOCOL))]) == "H100"
