"""The stages that a plan becomes on a site, and what each asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

import toys
from cpt_lab import remote
from cpt_lab.site import Site
from cpt_lab.slurm import batch_parameters
from cpt_lab.specs import Evaluation, FolderCheckpoint
from cpt_lab.store import Store
from spec_cases import FOLDER, PROTOCOL, RANDOM, SHAPE, rewound

POINT = Evaluation(checkpoint=rewound(RANDOM), protocol=PROTOCOL)
BIG = Site(name="big", gpus_per_node=8, gpu_memory_gb=80, cpus_per_task=8, memory_gb=100, minutes=600)


def scored(billions: float, dtype: str = "bfloat16") -> Evaluation:
    """A model of about so many billion weights."""
    shape = SHAPE.but(hidden_size=1024, vocab_size=int(billions * 1e9 / 2048))
    checkpoint = FolderCheckpoint(path=FOLDER.path, weights_digest=FOLDER.weights_digest, shape=shape)
    return Evaluation(checkpoint=checkpoint, protocol=PROTOCOL.but(dtype=dtype))


def test_what_computes_gets_a_gpu_and_each_stage_waits_for_those_before_it(tmp_path: Path) -> None:
    made = remote.stages(toys.told(tmp_path, [POINT]), BIG)
    assert [(stage.name, stage.gpus, stage.packs) for stage in made] == [("data", 0, 1), ("cpt", 1, 1), ("rank", 0, 1), ("evaluate", 1, 1)]
    assert made[-1].needs == ("data", "cpt", "rank")


def test_a_site_without_gpus_asks_for_none(tmp_path: Path) -> None:
    assert {stage.gpus for stage in remote.stages(toys.told(tmp_path, [POINT]), Site(name="plain"))} == {0}


def test_a_stage_asks_for_what_its_site_says_of_it(tmp_path: Path) -> None:
    site = BIG.model_copy(
        update={"stages": Site(name="x", stages={"cpt": {"gpus": 8, "nodes": 2, "minutes": 300, "memory_gb": 900}}).stages}
    )  # type: ignore[dict-item]
    training = next(stage for stage in remote.stages(toys.told(tmp_path, [POINT]), site) if stage.name == "cpt")
    asked = batch_parameters(Path("/r/x"), training, site)
    expected = {"gpus_per_node": 8, "nodes": 2, "time": 300, "mem": "921600M", "cpus_per_task": 8}
    assert {name: asked[name] for name in expected} == expected


def test_the_cores_of_a_stage_reach_srun_too() -> None:
    stages = Site(name="x", stages={"rank": {"cpus_per_task": 3}}).stages  # type: ignore[dict-item]
    site = BIG.model_copy(update={"stages": stages})
    assert batch_parameters(Path("/r/x"), remote.stage("rank", site), site)["srun_args"] == ["--cpus-per-task=3"]


@pytest.mark.parametrize(
    ("given", "said"), [({"evaluation": {}}, "evaluation"), ({"rank": {"nodes": 2}}, "only pretrain and cpt run on several nodes")]
)
def test_a_site_names_stages_that_there_are_and_spreads_only_training(given: dict[str, dict[str, int]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Site.model_validate({"name": "x", "stages": given})


@pytest.mark.parametrize(
    ("billions", "dtype", "gpus"), [(0.1, "bfloat16", 1), (32, "bfloat16", 1), (35, "bfloat16", 2), (32, "float32", 2)]
)
def test_a_model_that_does_not_fit_one_gpu_gets_as_many_as_hold_it_with_a_quarter_more(
    tmp_path: Path, billions: float, dtype: str, gpus: int
) -> None:
    todo = toys.planned(Store(tmp_path), [scored(billions, dtype)])
    assert remote.gpus_to_evaluate(todo, BIG) == gpus


@pytest.mark.parametrize(
    "speed", [0, -3, "fast", True, float("inf"), float("nan"), [3], {"olmo2_1b": 0}, {"olmo2_1b": 3, "olmo2_7b": None}]
)
def test_a_speed_of_training_that_is_none_is_refused_with_how_to_give_one(speed: object) -> None:
    with pytest.raises(ValidationError, match=r"the tokens that one GPU trains on in a second, above 0, like 45000, or by model"):
        Site(name="x", train_tokens_per_second=speed)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stages", "ranks", "devices"), [({}, None, 1), ({"cpt": {"gpus": 8, "nodes": 2}}, None, 16), ({}, 3, 3)])
def test_a_training_run_has_all_gpus_of_its_nodes_or_the_processes_it_is_told(
    stages: dict[str, dict[str, int]], ranks: int | None, devices: int
) -> None:
    site = Site(name="x", gpus_per_node=8, stages=stages)  # type: ignore[arg-type]
    assert remote.devices(site, ranks) == {"cpt": devices, "pretrain": ranks or 1}


def test_a_task_has_as_many_gpus_as_are_asked_for_or_as_hold_the_model_and_a_worker_may_use_all_of_its_task(tmp_path: Path) -> None:
    todo = toys.planned(Store(tmp_path), [scored(35)])
    large = Site.model_validate({**BIG.model_dump(), "stages": {"probe": {"gpus": 4}, "cpt": {"gpus": 8}}})
    assert [remote.gpus_to_evaluate(todo, large, asked) for asked in (None, 1, 3)] == [2, 1, 3]
    assert [remote.stage(name, large, to_evaluate=2).gpus for name in ("probe", "evaluate", "spectra")] == [4, 2, 1]
    assert [remote.gpus_to_spread(large, 2, asked) for asked in (None, 1, 3)] == [4, 1, 3]
    assert remote.gpus_to_spread(BIG, 2) == 2


def test_a_stage_with_fewer_gpus_than_the_model_needs_is_refused(tmp_path: Path) -> None:
    small = Site.model_validate({**BIG.model_dump(), "stages": {"evaluate": {"gpus": 1}}})
    message = r"evaluate has 1 GPUs by site.stages.evaluate.gpus, and 2 are needed .* give site.stages.evaluate.gpus as many"
    with pytest.raises(ValueError, match=message):
        remote.check(toys.planned(Store(tmp_path), [scored(35)]), small, 2)


def test_a_model_that_no_node_can_hold_is_refused(tmp_path: Path) -> None:
    todo = toys.planned(Store(tmp_path), [scored(500)])
    with pytest.raises(ValueError, match=r"1000 GB needs 15 GPUs of 80 GB to be scored, and a task of site big has 8"):
        remote.gpus_to_evaluate(todo, BIG)


def test_workers_that_evaluate_ask_for_all_gpus_of_their_model_and_those_that_measure_spectra_for_one(tmp_path: Path) -> None:
    told = toys.told(tmp_path, [POINT])
    assert {stage.name: stage.gpus for stage in remote.stages(told, BIG, 4)} == {"data": 0, "cpt": 1, "rank": 0, "evaluate": 4}


def test_waiting_outlives_a_controller_that_does_not_answer_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = toys.told(tmp_path, [POINT])
    (told.folder / "jobs.json").write_text('{"all": {"job": "7", "tasks": 1, "ids": ["7"]}}')
    answers = iter([{"7": "RUNNING"}, None, None, {"7": "COMPLETING"}, {"7": "COMPLETED"}])

    def job_states(_: object) -> dict[str, str]:
        answer = next(answers)
        if answer is None:
            raise ValueError("squeue failed (nobody there)")
        return answer

    monkeypatch.setattr(remote.slurm, "job_states", job_states)
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.0)
    remote.wait(told)
    assert next(answers, "all were asked for") == "all were asked for"
    assert capsys.readouterr().err == "warning: squeue failed (nobody there); the jobs go on meanwhile\n"
