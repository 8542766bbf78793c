"""The greedy order: what it needs, where its evaluations stand in a plan, and how reliable it says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import made_up_study as made_up
import toys
from cpt_lab import build, plan, remote, study
from cpt_lab.execution import Execution
from cpt_lab.interventions import PruneLayers, Rewind
from cpt_lab.interventions.prune_layers import Layers
from cpt_lab.launch import Launch
from cpt_lab.orderings import build_ranking, ranking
from cpt_lab.orderings.greedy import found_share, reliability
from cpt_lab.site import Site
from cpt_lab.specs import Evaluation, Patched, Probe, Ranking, TopOf, key, parse
from cpt_lab.store import State, Store
from cpt_lab.worker import Worker
from factory import workspace
from spec_cases import BASE, PROTOCOL, RANDOM, SHAPE, TUNED, rewind_of, rewound_heads
from spec_cases import rewound as rewound_by

PROBE = Probe(tuned=TUNED, base=BASE, protocol=PROTOCOL)
GREEDY = Ranking(criterion="greedy", direction="descending", shape=SHAPE, probe=PROBE)
EVERY_HEAD = tuple((layer, head) for layer in range(2) for head in range(4))


def scored(checkpoint: Any) -> Evaluation:
    return Evaluation(checkpoint=checkpoint, protocol=PROTOCOL)


PROBES = (scored(TUNED), *(scored(rewound_heads(head)) for head in EVERY_HEAD))
POINT = scored(rewound_by(GREEDY))


# ------------------------------------------------------------------------------------------------------------ what it needs


def test_a_greedy_order_needs_the_tuned_checkpoint_and_every_head_rewound_alone() -> None:
    assert [key(need) for need in GREEDY.needs()] == [key(probe) for probe in PROBES]
    assert GREEDY.but(direction="ascending").needs() == GREEDY.needs()
    assert "evaluation" not in GREEDY.model_dump_json()
    assert parse(json.loads(GREEDY.model_dump_json())) == GREEDY


def test_the_points_of_a_study_share_the_evaluations_of_single_heads() -> None:
    one = scored(rewound_by(RANDOM, 1 / 8))
    orders = {key(RANDOM): ((1, 2), *EVERY_HEAD)}
    assert key(study.settled(one, orders)) in {key(need) for need in GREEDY.needs()}


def test_layers_and_matrices_are_rewound_one_at_a_time_too() -> None:
    layers, matrices = GREEDY.but(unit="layer"), GREEDY.but(unit="matrix", roles=("q", "down"))
    assert layers.needs() == (PROBES[0], scored(rewound_heads(*EVERY_HEAD[:4])), scored(rewound_heads(*EVERY_HEAD[4:])))
    targets = [{edit.target.parameter for edit in change.patch(SHAPE).edits} for change in map(rewind_of, matrices.needs()[1:])]
    assert len(targets) == 4
    assert targets[1] == {"model.layers.0.mlp.down_proj.weight"}
    assert targets[2] == {f"model.layers.1.self_attn.q_{part}.weight" for part in ("proj", "norm")}


def test_a_share_of_layers_or_matrices_is_rewound_as_heads_or_matrices() -> None:
    layers = Ranking(criterion="random", direction="ascending", shape=SHAPE, seed=0, unit="layer")
    change = Rewind(base=BASE, select=TopOf(ranking=layers, fraction=0.5))
    assert change.with_ranking(((1, "all"), (0, "all"))) == rewind_of(scored(rewound_heads(*EVERY_HEAD[4:])))
    matrices = layers.but(unit="matrix", roles=("v", "up"))
    change = Rewind(base=BASE, select=TopOf(ranking=matrices, fraction=0.5))
    chosen = change.with_ranking(((1, "v"), (0, "up"), (0, "v"), (1, "up")))
    assert {edit.target.parameter for edit in chosen.patch(SHAPE).edits} == {
        "model.layers.1.self_attn.v_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    }
    nothing = change.but(select=TopOf(ranking=matrices, fraction=0))
    assert nothing.settled() is None
    every = change.but(select=TopOf(ranking=matrices, fraction=1)).settled()
    assert every is not None
    assert len(every.patch(SHAPE).edits) == 4


# ------------------------------------------------------------------------------------------------------- plan and workers


def test_the_probes_are_a_stage_before_the_ranking_and_shared_out_to_the_workers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    points = [POINT, scored(rewound_by(GREEDY, 0.5)), scored(TUNED), scored(rewound_heads((1, 2)))]
    made = toys.planned(store, points, packs=3)
    stages = {stage: {step.key for step in steps} for stage, steps in made.stages().items()}
    assert list(stages) == ["data", "cpt", "probe", "rank", "evaluate"]
    assert stages["probe"] == {key(probe) for probe in PROBES}  # two of them are points as well
    assert stages["evaluate"] == {key(POINT), key(points[1])}
    assert sorted(len(stages["probe"].intersection(names)) for names in made.packs) == [3, 3, 3]
    assert [len(stages["evaluate"].intersection(names)) for names in made.packs] == [1, 1, 0]
    for names in made.packs:
        kinds = [name in stages["evaluate"] for name in names]
        assert kinds == sorted(kinds)  # probes first


def test_each_stage_on_a_cluster_has_a_task_per_worker_that_has_something_to_do(tmp_path: Path) -> None:
    told = toys.told(tmp_path, [POINT], packs=4)
    made = remote.stages(told, Site(name="plain", gpus_per_node=1))
    assert [(stage.name, stage.packs, stage.gpus) for stage in made if stage.name in ("probe", "rank", "evaluate")] == [
        ("probe", 4, 1),
        ("rank", 1, 0),
        ("evaluate", 1, 1),
    ]
    assert "probe" in next(stage.needs for stage in made if stage.name == "rank")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """A launch of one point by a greedy order, whose builders only take notes."""
    monkeypatch.setattr(build, "BUILDERS", dict.fromkeys(build.BUILDERS, toys.toy))
    return toys.told(tmp_path / "results", [POINT])


def test_one_worker_builds_the_probes_then_the_ranking_then_the_point(told: Launch) -> None:
    assert Worker(told, "all", 0).run() == 0
    built = [name for _, name in toys.notes(told.results)]
    place = built.index(key(GREEDY))
    assert {key(probe) for probe in PROBES} <= set(built[:place])
    assert built[place + 1 :] == [key(scored(rewound_heads((1, 0), (1, 1))))]  # by the toys' order


def test_stage_by_stage_every_worker_finds_what_it_needs(told: Launch) -> None:
    for stage in told.stages():
        assert Worker(told, stage, 0).run() == 0, stage


def test_a_probe_that_fails_blocks_the_ranking_and_its_points_alone(told: Launch) -> None:
    toys.write_script(told.results, {key(PROBES[3]): "fail"})
    assert Worker(told, "all", 0).run() == 1
    store = told.store()
    assert store.status(GREEDY).state is State.BLOCKED
    assert study.point_status(store, POINT).state is State.BLOCKED
    assert "told to fail" in study.point_status(store, POINT).message
    assert all(store.is_done(probe) for index, probe in enumerate(PROBES) if index != 3)


def test_building_a_greedy_order_by_itself_builds_its_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILDERS", dict.fromkeys(build.BUILDERS, toys.toy))
    store = Store(tmp_path)
    build.ensure(build.Workshop(store, Execution()), GREEDY)
    assert all(store.is_done(probe) for probe in PROBES)
    assert plan.probes([GREEDY, GREEDY.but(direction="ascending")]) == list(PROBES)


# ------------------------------------------------------------------------------------------------------- scores and trust


def built(folder: Path, outcomes: np.ndarray, *, metric: str | None = None, direction: str = "descending") -> tuple[Any, pd.DataFrame]:
    """ranking.json and scores.parquet of outcomes (tuned and 8 heads, documents); the second task's fall where these rise."""
    spec = ranking("greedy", direction, tuned=made_up.TUNED, base=made_up.BASE, protocol=made_up.PROTOCOL, metric=metric)
    products = []
    for index, row in enumerate(outcomes):
        product = folder / f"evaluation {index}"
        product.mkdir(parents=True)
        metrics = {
            "tiny_math/exact_match": {"value": float(row.mean()), "stderr": None, "n": len(row), "higher_is_better": True},
            "tiny_text/bits_per_byte": {"value": float(5 - row.mean()), "stderr": None, "n": len(row), "higher_is_better": False},
        }
        (product / "results.json").write_text(json.dumps({"primary": "tiny_math/exact_match", "metrics": metrics}))
        rows = pd.DataFrame({"task": "tiny_math", "document": range(len(row)), "exact_match": row})
        texts = pd.DataFrame({"task": "tiny_text", "document": range(len(row)), "bits_per_byte": 5 - row})
        pd.concat([rows, texts]).sample(frac=1, random_state=index).to_parquet(product / "samples.parquet")
        products.append(product)
    work = workspace(folder / "ranking")
    build_ranking(spec, products, work)
    return json.loads((work.product / "ranking.json").read_text()), pd.read_parquet(work.product / "scores.parquet")


def outcomes_of(changes: list[float], documents: int = 20) -> np.ndarray:
    """Every document changes by the same."""
    return np.array([0.5, *(0.5 + np.array(changes))])[:, None] * np.ones(documents)


CHANGES = [0.1, -0.2, 0.3, 0.0, -0.4, 0.25, 0.05, -0.1]


def test_the_head_whose_rewinding_helps_most_comes_first_in_descending_order(tmp_path: Path) -> None:
    written, scores = built(tmp_path, outcomes_of(CHANGES))
    assert scores["score"].tolist() == pytest.approx(CHANGES)
    assert written["order"][0] == [0, 2]
    assert written["order"][-1] == [1, 0]
    assert built(tmp_path / "up", outcomes_of(CHANGES), direction="ascending")[0]["order"] == written["order"][::-1]


def test_where_lower_is_better_a_fall_is_a_gain(tmp_path: Path) -> None:
    _, scores = built(tmp_path, outcomes_of(CHANGES), metric="tiny_text/bits_per_byte")
    assert scores["score"].tolist() == pytest.approx(CHANGES)


def test_a_metric_that_the_task_has_not_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown metric of protocol tiny 'tiny_math/f1' \(did you mean tiny_math/exact_match"):
        built(tmp_path, outcomes_of(CHANGES), metric="tiny_math/f1")


def test_every_score_has_its_paired_standard_error(tmp_path: Path) -> None:
    outcomes = np.random.default_rng(0).random((9, 30))
    _, scores = built(tmp_path, outcomes)
    differences = outcomes[1:] - outcomes[0]
    assert scores["stderr"].tolist() == pytest.approx((differences.std(axis=1, ddof=1) / np.sqrt(30)).tolist())


def test_without_noise_an_order_is_perfectly_reliable() -> None:
    facts = reliability(np.arange(40.0)[:, None] * np.ones(50))
    assert {name: facts[name] for name in ("halves", "whole", "found_by_half", "found")} == pytest.approx(
        {"halves": 1, "whole": 1, "found_by_half": 1, "found": 1}
    )


def test_an_order_of_noise_finds_no_more_than_chance() -> None:
    facts = reliability(np.random.default_rng(0).normal(size=(200, 100)))
    assert abs(facts["halves"]) < 0.25
    assert facts["found_by_half"] == pytest.approx(0.15, abs=0.1)
    assert facts["found"] < 0.4


def test_heads_that_all_change_nothing_are_not_told_apart() -> None:
    facts = reliability(np.zeros((20, 10)))
    assert (facts["halves"], facts["whole"]) == (0, 0)


@pytest.mark.parametrize("shape", [(1, 10), (10, 1)])
def test_one_head_or_one_document_says_nothing_of_reliability(shape: tuple[int, int]) -> None:
    assert reliability(np.ones(shape))["found"] is None


@pytest.mark.parametrize("effect", [0.6, 1.0, 1.5])
def test_the_share_found_is_that_of_a_simulation_whose_truth_is_known(effect: float) -> None:
    # effects and paired errors as of GSM8K: 256 heads, both in points; the noise is written as that of the mean over the documents
    generator = np.random.default_rng(3)
    found, said = [], []
    for _ in range(6):
        truth = effect * generator.normal(size=256)
        differences = truth[:, None] + 0.75 * np.sqrt(200) * generator.normal(size=(256, 200))
        best, measured = (set(np.argsort(-scores)[:38]) for scores in (truth, differences.mean(axis=1)))
        found.append(len(best & measured) / 38)
        said.append(found_share(differences))
    assert np.mean(said) == pytest.approx(np.mean(found), abs=0.05)


def test_reliability_is_the_same_whenever_it_is_asked_for() -> None:
    differences = np.random.default_rng(0).normal(size=(30, 20))
    assert reliability(differences) == reliability(differences)


# -------------------------------------------------------------------------------------------------------------- ablation


def test_importance_by_ablation_needs_the_checkpoint_and_each_layer_left_out_alone() -> None:
    made = ranking("ablation", "descending", tuned=TUNED, base=BASE, unit="layer", protocol=PROTOCOL)
    without = (Patched(tuned=TUNED, interventions=(PruneLayers(select=Layers(layers=(layer,))),)) for layer in range(2))
    assert made.needs() == (scored(TUNED), *map(scored, without))
    assert parse(json.loads(made.model_dump_json())) == made
    assert made.units == ((0, "all"), (1, "all"))


def test_the_layer_that_is_missed_most_is_the_most_important(tmp_path: Path) -> None:
    made = ranking("ablation", "descending", tuned=TUNED, base=BASE, unit="layer", protocol=PROTOCOL)
    answers = {"whole": [1, 1, 1, 1], "without 0": [1, 1, 1, 0], "without 1": [1, 0, 0, 0]}
    folders = []
    for name, right in answers.items():
        folder = tmp_path / name
        folder.mkdir()
        metric = {"value": sum(right) / 4, "stderr": None, "n": 4, "higher_is_better": True}
        (folder / "results.json").write_text(json.dumps({"primary": "sums/exact_match", "metrics": {"sums/exact_match": metric}}))
        pd.DataFrame({"task": "sums", "document": range(4), "exact_match": right}).to_parquet(folder / "samples.parquet")
        folders.append(folder)
    work = workspace(tmp_path / "work")
    build_ranking(made, folders, work)
    assert pd.read_parquet(work.product / "scores.parquet")["score"].tolist() == [0.25, 0.75]
    assert json.loads((work.product / "ranking.json").read_text())["order"] == [[1, "all"], [0, "all"]]


def test_heads_cannot_be_ablated_by_the_criterion_of_layers() -> None:
    with pytest.raises(ValueError, match=r"criterion ablation ranks a layer and no head: set criterion.unit=layer"):
        ranking("ablation", "descending", tuned=TUNED, base=BASE, protocol=PROTOCOL)
