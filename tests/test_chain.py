"""Several interventions in one configuration: composed, swept, refused and materialized as one change after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import here
from compositions import points, refused
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.interventions import PruneLayers, Rewind, Truncate
from cpt_lab.interventions.prune_layers import FirstLayers
from cpt_lab.patch import apply
from cpt_lab.specs import Evaluation, Intervention, Patched, TopOf, key, rankings_of, settled
from cpt_lab.store import Store
from cpt_lab.study import Point, read_order
from cpt_lab.weights import open_weights
from factory import tiny_checkpoint
from long_tables import rest_slow

TRUNCATE = ("intervention=truncate", "intervention.percent=50")
REWIND = ("+intervention@then.rewind=rewind", "then.rewind.fraction=0.5")
ITS_OWN = ("+criterion@then.rewind.criterion=random",)


def patched(point: Point) -> Patched:
    checkpoint = point.spec.checkpoint if isinstance(point.spec, Evaluation) else point.spec
    assert isinstance(checkpoint, Patched)
    return checkpoint


def changes(*words: str) -> tuple[Intervention, ...]:
    (point,) = points(*words)
    return patched(point).interventions


def order(change: Intervention) -> str:
    (ranking,) = change.rankings()
    return ranking.label()


# ------------------------------------------------------------------------------------------------------- what it means


def test_a_chain_is_its_members_in_the_order_in_which_they_stand() -> None:
    (first,), (second,) = changes(*TRUNCATE), changes("intervention=rewind", "intervention.fraction=0.5", "criterion=random")
    (point,) = points(*TRUNCATE, *REWIND, "criterion=random")
    assert patched(point) == Patched(tuned=patched(point).tuned, interventions=(first, second))
    backwards = changes(
        "intervention=rewind", "intervention.fraction=0.5", "+intervention@then.truncate=truncate", "then.truncate.percent=50"
    )
    assert [change.kind for change in backwards] == ["rewind", "truncate"]


def test_the_order_of_a_chain_is_part_of_its_key_and_the_names_of_its_members_are_not() -> None:
    words = ("criterion=random", "then.{}.percent=50", "+intervention@then.{}=truncate")
    (one,) = points("intervention=rewind", "intervention.fraction=0.5", *(word.format("a") for word in words))
    (other,) = points("intervention=rewind", "intervention.fraction=0.5", *(word.format("b") for word in words))
    (turned,) = points(*TRUNCATE, *REWIND, "criterion=random")
    assert key(one.spec) == key(other.spec) != key(turned.spec)


def test_members_of_then_may_stand_alone_and_follow_the_order_of_the_command() -> None:
    named_backwards = ("+intervention@then.b=truncate", "then.b.percent=50", "+intervention@then.a=soup", "then.a.weight=0.5")
    assert [change.kind for change in changes(*named_backwards)] == ["truncate", "soup"]


def test_a_label_has_all_members() -> None:
    (point,) = points(*TRUNCATE, *REWIND, "criterion=random")
    assert patched(point).label() == "truncate-50-rewind-random-descending-seed0-0.5"
    assert key(patched(point)).startswith("truncate-50-rewind-random-descending-seed0-0.5-")


@pytest.mark.slow
def test_members_share_the_criterion_of_the_study_unless_they_have_their_own() -> None:
    prune = ("+intervention@then.prune=prune_layers", "then.prune.count=1", "+criterion@then.prune.criterion=pl_alpha")
    rewind = ("intervention=rewind", "intervention.fraction=0.5", "criterion=delta_norm")
    of_rewind, of_prune = changes(*rewind, *prune, "then.prune.criterion.unit=layer")
    assert (order(of_rewind), order(of_prune)) == ("delta_norm-descending", "pl_alpha-layers-ascending")
    _, shared = changes(*rewind, *prune[:2])
    assert order(shared) == "delta_norm-ascending"
    assert isinstance(of_prune, PruneLayers)
    assert isinstance(of_prune.select, FirstLayers)


def test_a_greedy_criterion_of_a_member_rewinds_as_that_member_does() -> None:
    _, change = changes(*TRUNCATE, *REWIND, "then.rewind.kv=never", "+criterion@then.rewind.criterion=greedy")
    (ranking,) = change.rankings()
    assert ranking.probe is not None
    assert ranking.probe.kv == "never"


@pytest.mark.parametrize("percent", [50, 100])
@pytest.mark.parametrize("fraction", [0, 0.5])
def test_idle_members_of_a_chain_go(percent: int, fraction: float) -> None:
    (point,) = points("criterion=random", *TRUNCATE[:1], f"intervention.percent={percent}", *REWIND[:1], f"then.rewind.fraction={fraction}")
    left = settled(patched(point))
    kinds = [change.kind for change in left.interventions] if isinstance(left, Patched) else []
    assert kinds == ["truncate"] * (percent < 100) + ["rewind"] * (fraction > 0)
    assert isinstance(left, Patched) or left == patched(point).tuned


# ---------------------------------------------------------------------------------------------------------------- sweeps


def test_settings_of_members_are_swept_under_short_names() -> None:
    made = points(*TRUNCATE, *REWIND[:1], "intervention.percent=20,50", "then.rewind.fraction=0.25,0.5", "criterion=random")
    assert [point.name for point in made] == [f"percent={percent} fraction={share}" for percent in (20, 50) for share in (0.25, 0.5)]
    found = {(first.percent, second.select.fraction) for first, second in map(both, made)}
    assert found == {(20, 0.25), (20, 0.5), (50, 0.25), (50, 0.5)}


def both(point: Point) -> tuple[Any, Any]:
    first, second = patched(point).interventions
    assert isinstance(first, Truncate)
    assert isinstance(second, Rewind)
    assert isinstance(second.select, TopOf)
    return first, second


def test_settings_that_two_members_have_keep_their_places_as_names() -> None:
    made = points(*REWIND[:1], "intervention=rewind", "intervention.fraction=0.1,0.2", "then.rewind.fraction=0.3,0.4", "criterion=random")
    assert list(made[0].varies) == ["intervention.fraction", "then.rewind.fraction"]


@pytest.mark.slow
def test_criteria_of_a_member_are_swept() -> None:
    made = points(*TRUNCATE, *REWIND, "+criterion@then.rewind.criterion=random,delta_norm")
    assert [next(rankings_of(point.spec)).criterion for point in made] == ["random", "delta_norm"]
    assert [point.name for point in made] == ["random", "delta_norm"]


@pytest.mark.slow
def test_a_member_itself_is_swept_and_none_is_no_member() -> None:
    made = points("intervention=rewind", "criterion=random", "intervention.fraction=0.5", "+intervention@then.last=none,rotate_ablate")
    assert [len(patched(point).interventions) for point in made] == [1, 2]


@pytest.mark.slow
def test_a_file_may_hold_a_chain_and_the_command_line_wins_over_what_it_sweeps(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "chained.yaml").write_text(
        "# @package _global_\n"
        "defaults:\n  - /intervention@then.rewind: rewind\n  - override /intervention: truncate\n  - override /criterion: random\n"
        "intervention:\n  percent: 50\n"
        "hydra:\n  sweeper:\n    params:\n      then.rewind.fraction: 0.25,0.5,0.75\n"
    )
    asked = ("plan", "+experiment=chained", "--config-dir", str(tmp_path), f"results={tmp_path / 'results'}")
    assert here(*asked).out.startswith("study chained: 3 points, 0 done")
    assert here(*asked, "then.rewind.fraction=0.5").out.startswith("study chained: 1 points")
    other = here(*asked, "intervention@then.rewind=rotate_ablate")  # takes no fraction: nothing is left to sweep
    assert other.out.startswith("study chained: 1 points"), other.err


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "expected"),
    rest_slow(
        [
            ((*REWIND, "then.rewind.fracton=1"), "unknown setting 'then.rewind.fracton' (did you mean then.rewind.fraction"),
            ((*REWIND, "+then.rewind.fracton=1"), "unknown setting 'then.rewind.fracton' (did you mean then.rewind.fraction"),
            (
                (*REWIND, *ITS_OWN, "then.rewind.criterion.sed=1"),
                "unknown setting 'then.rewind.criterion.sed' (did you mean then.rewind.criterion",
            ),
            ((*REWIND[:1], "then.rewind.fraction=2"), "then.rewind.fraction: got 2, allowed is a share"),
            (REWIND[:1], "intervention@then.rewind=rewind must know which heads: set then.rewind.fraction=0.5, or then.rewind.heads="),
            (("+intervention@then.cut=truncate",), "then.cut.percent is not given: set then.cut.percent=VALUE"),
            (("+intervention@then.cut=prune_layers", "then.cut.count=9"), "then.cut.count is 9, but 3 of 4 layers may go"),
            (("+intervention@then.mix=soup", "then.mix.weights={tuned:0.3}"), "then.mix.weights of tuned add up to 0.3, not to 1"),
            (
                ("+intervention@then.mix=soup", "then.mix.weight=0.3", "then.mix.with=refrence"),
                "unknown checkpoint 'refrence' (did you mean ref",
            ),
            (("+intervention@then.rewind=rewnd",), "unknown choice of intervention 'rewnd' (did you mean rewind?)"),
            (("+then.rewind.name=rewnd",), "then.rewind.name: unknown intervention 'rewnd' (did you mean rewind?)"),
            (("+then.rewind.fraction=1",), "then.rewind names no intervention: add one with +intervention@then.rewind=NAME"),
            (("then.rewind.fraction=1",), "nothing stands at then.rewind: add it with +intervention@then.rewind=rewind"),
            (("+then.rewind=1",), "then.rewind: input should be a valid dictionary (got 1)"),
            ((*REWIND, *ITS_OWN, "then.rewind.criterion.seed=null"), "criterion random needs a seed: set then.rewind.criterion.seed=VALUE"),
            ((*REWIND, "criterion=random", "criterion.seed=null"), "criterion random needs a seed: set criterion.seed=VALUE"),
            ((*REWIND, "+then.rewind.criterion=random"), "choose a file with +criterion@then.rewind.criterion=random"),
            (("intervention=rewind", "+intervention.criterion=random"), "unknown setting 'intervention.criterion'"),
        ],
        fast=4,
    ),
)
def test_what_is_wrong_with_a_member_is_said_of_its_place(words: tuple[str, ...], expected: str) -> None:
    assert expected in refused(*words)


# ------------------------------------------------------------------------------------------------------------- materialize


def test_a_materialized_chain_is_one_change_after_the_other(tmp_path: Path) -> None:
    for seed, name in enumerate(("tuned", "base")):
        tiny_checkpoint(tmp_path / name, seed=seed)
    folders = (word for name in ("tuned", "base") for word in (f"{name}.from=folder", f"{name}.path={tmp_path / name}"))
    (point,) = points(*folders, "target=materialize", *TRUNCATE, *REWIND, "criterion=random")
    workshop = Workshop(Store(tmp_path / "results"), Execution())
    found = open_weights(ensure(workshop, point.spec))
    truncate, rewind = both(point)
    base = {"base": open_weights(tmp_path / "base")}
    truncated = apply(truncate.patch(patched(point).shape), open_weights(tmp_path / "tuned"), base)
    (ranking,) = rewind.rankings()
    units = read_order(workshop.store, ranking)
    assert units is not None
    expected = apply(rewind.with_ranking(units).patch(patched(point).shape), truncated, base)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(found[name], truncated[name]) for name in expected)
