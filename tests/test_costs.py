"""What a plan costs, in words, and the refusal of more than a budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cpt_lab import costs, plan
from cpt_lab.plan import Plan
from cpt_lab.rates import DEVICES, Rates, work
from cpt_lab.site import Site
from cpt_lab.specs import Evaluation, Mixture, Part, Spec, TrainedCheckpoint, key
from cpt_lab.store import State, Status
from cpt_lab.study import Point
from spec_cases import BASE, FOLDER, HUB, MATH, PATCHED, PRETRAINED, PROTOCOL, READY, TUNED, rewound_heads

POINTS = [Evaluation(checkpoint=rewound_heads(*((0, head) for head in range(count + 1))), protocol=PROTOCOL) for count in range(4)]
DONE = {key(spec) for spec in (TUNED, BASE, PROTOCOL)}
HOUR = {work(POINTS[0]).group: 3600.0}


def point(spec: Spec) -> Point:
    return Point(name=key(spec), varies={}, config={}, spec=spec)


def planned(*specs: Spec, rates: Rates, workers: int = 2, status: Callable[[Spec], Status] | None = None) -> Plan:
    known = status or (lambda spec: Status(State.DONE if key(spec) in DONE else State.PLANNED))
    return plan.make([point(spec) for spec in specs], status=known, orders={}, workers=workers, rates=rates)


def trained(*parts: Part) -> TrainedCheckpoint:
    return PRETRAINED.but(mixture=Mixture(name="m", parts=parts))


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


def test_the_disk_is_spoken_of_where_much_is_written() -> None:
    big = FOLDER.but(shape=FOLDER.shape.but(vocab_size=1_000_000))
    lines = costs.lines(planned(PATCHED.but(tuned=big), rates=Rates()), 1)
    assert lines[-1] == "disk: about 0.1 GB at its fullest (weights 0.1 GB), 0.1 GB of it stays"


def test_the_disk_of_a_training_run_is_told_by_what_takes_it() -> None:
    whole = HUB.but(available_tokens=7 * 10**9)
    (line,) = costs.lines(planned(trained(Part(corpus=whole, tokens=10**9)), rates=Rates()), 1)[-1:]
    assert line == "disk: about 28.0 GB at its fullest (token files 14.0 GB, their pieces while they are made 14.0 GB), 14.0 GB of it stays"
    ready = costs.lines(planned(trained(Part(corpus=READY, tokens=10**10)), rates=Rates()), 1)
    assert ready[-1] == "disk: about 40.0 GB at its fullest (mixed tokens of training runs 40.0 GB), 0.0 GB of it stays"


def test_a_corpus_that_nobody_knows_the_size_of_is_named_with_the_way_to_end_it() -> None:
    endless = HUB.but(available_tokens=None)
    found = costs.lines(planned(trained(Part(corpus=endless, tokens=10**9)), rates=Rates()), 1)
    assert found[-1].startswith(
        "disk: nobody said how many tokens dclm has, and all of them will be written: +corpora.dclm.sample_tokens=N"
    )
    assert "token files 2.0 GB" in found[-2]


def test_a_training_run_is_told_with_tokens_of_each_source_epochs_steps_and_hours() -> None:
    known = Part(corpus=HUB, tokens=15_000, oversample=True)
    run = trained(known, Part(corpus=MATH, tokens=1400))
    speeds = {"FLOPs": Rates(), "measured": Rates(of_group={work(run).group: 3600.0}), "given": Rates(given=run.mixture.tokens / 7200)}
    told = {name: costs.lines(planned(run, rates=rates), 1)[0] for name, rates in speeds.items()}
    sources = "dclm 15,000 tokens (1.50 epochs), math 1,400 tokens; 64 steps of 256 tokens"
    assert told["measured"] == (
        f"{key(run)}: {sources}; about 1.00 GPU hours, at 4.56 tokens a second per GPU (measured: as earlier runs took)"
    )
    assert told["given"] == (
        f"{key(run)}: {sources}; about 2.00 GPU hours, at 2.28 tokens a second per GPU (given by site.train_tokens_per_second)"
    )
    assert told["FLOPs"].startswith(f"{key(run)}: {sources}; about 0.00 GPU hours, at ")
    assert told["FLOPs"].endswith("tokens a second per GPU (from FLOPs)")


def test_of_many_training_runs_some_are_told_and_the_others_counted() -> None:
    runs = [TUNED.but(recipe=TUNED.recipe.but(seed=seed)) for seed in range(15)]
    lines = costs.trainings(planned(*runs, rates=Rates()))
    assert len(lines) == 13
    assert lines[-1] == "and 2 training runs more"


def test_a_training_run_on_a_cpu_is_told_in_core_hours() -> None:
    (line,) = costs.trainings(planned(PRETRAINED, rates=Rates(DEVICES["cpu"], given=1000 / 7200)))
    assert line.endswith("about 2.00 core hours, at 0.14 tokens a second per core (given by site.train_tokens_per_second)")


def test_the_cost_says_how_many_steps_go_by_a_given_speed() -> None:
    todo = planned(TUNED, rates=Rates(given=TUNED.mixture.tokens / 7200), status=lambda _: Status(State.PLANNED))
    cost = next(line for line in costs.lines(todo, 1) if line.startswith("cost"))
    assert cost.startswith(
        f"cost: about 2.00 GPU hours, 1 of {todo.todo} steps at the speed given in site.train_tokens_per_second, the rest from FLOP counts"
    )


def test_a_given_speed_decides_whether_the_budget_is_kept() -> None:
    with pytest.raises(ValueError, match=r"about 2.0 GPU hours and budget.gpu_hours allows 1.9"):
        costs.check_budget(planned(PRETRAINED, rates=Rates(given=PRETRAINED.mixture.tokens / 7200)), 1.9)


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
