"""GPUs of a machine and how a launch shares them out, with a made-up nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from cpt_lab import gpus, local
from cpt_lab.execution import Execution
from cpt_lab.store import Store
from test_remote import scored

FOUR_OF_80 = "\n".join(["81920"] * 4)


def machine(folder: Path, patch: pytest.MonkeyPatch, memories: str) -> None:
    """One whose nvidia-smi lists GPUs of so many MiB."""
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncase $1 in *name*) echo 'NVIDIA A100-SXM4-80GB' ;; *) echo '{memories}' ;; esac\n")
    tool.chmod(0o755)
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    patch.delenv(gpus.VISIBLE, raising=False)


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, FOUR_OF_80)


@pytest.mark.usefixtures("four")
def test_a_machine_with_gpus_has_one_worker_for_each_and_half_as_many_that_need_two() -> None:
    assert gpus.names() == ["0", "1", "2", "3"]
    assert gpus.memory_gb() == 80
    assert [local.default_workers(each) for each in (1, 2, 3, 4)] == [4, 2, 1, 1]


@pytest.mark.usefixtures("four")
def test_each_worker_sees_its_own_gpus_only() -> None:
    assert [gpus.of_worker(index, 1)[gpus.VISIBLE] for index in range(4)] == ["0", "1", "2", "3"]
    assert [gpus.of_worker(index, 2)[gpus.VISIBLE] for index in range(3)] == ["0,1", "2,3", "0,1"]


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("given_to_us", "names"), [("2,3", ["2", "3"]), ("GPU-0f7e,MIG-1a", ["GPU-0f7e", "MIG-1a"]), ("", []), ("-1", []), ("NoDevFiles", [])]
)
def test_what_this_process_may_not_use_is_given_to_no_worker(monkeypatch: pytest.MonkeyPatch, given_to_us: str, names: list[str]) -> None:
    monkeypatch.setenv(gpus.VISIBLE, given_to_us)
    assert gpus.names() == names
    assert gpus.of_worker(0, 2) == ({gpus.VISIBLE: given_to_us} if names else {})
    assert gpus.shares(2) == len(names) // 2


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("how", "workers", "each"),
    [
        (Execution(), 4, 1),
        (Execution(), 1, 4),
        (Execution(gpus=2), 4, 2),
        (Execution(ranks=3), 1, 3),
        (Execution(device="cpu"), 1, 1),
        (Execution(device="cpu", ranks=2), 1, 2),
    ],
)
def test_a_training_run_has_all_gpus_of_its_worker_unless_told_how_many(how: Execution, workers: int, each: int) -> None:
    assert local.devices(how, workers) == {"pretrain": each, "cpt": each}


@given(count=st.integers(1, 16), each=st.integers(1, 8), index=st.integers(0, 40))
def test_a_worker_has_as_many_gpus_as_it_shall_and_so_many_workers_share_none(count: int, each: int, index: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(gpus.VISIBLE, ",".join(map(str, range(count))))
        each = min(each, count)
        of = [gpus.of_worker(number, each)[gpus.VISIBLE].split(",") for number in range(gpus.shares(each))]
        assert len({name for names in of for name in names}) == each * gpus.shares(each)
        assert gpus.of_worker(index, each)[gpus.VISIBLE].split(",") in of


def test_a_machine_without_gpus_has_workers_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)
    todo = toys.planned(Store(tmp_path), [scored(500)])
    assert (gpus.names(), gpus.memory_gb(), gpus.of_worker(0, 1), local.gpus_to_evaluate(todo)) == ([], 0, {}, 1)
    assert local.devices(Execution(), 4)["cpt"] == 1
    assert local.default_workers() >= 1


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(("billions", "count"), [(7, 1), (32, 1), (35, 2), (100, 3)])
def test_a_local_worker_gets_as_many_gpus_as_hold_the_largest_model_with_a_quarter_more(
    tmp_path: Path, billions: float, count: int
) -> None:
    assert local.gpus_to_evaluate(toys.planned(Store(tmp_path), [scored(billions), scored(1)])) == count


@pytest.mark.usefixtures("four")
def test_who_knows_better_says_how_many_gpus_a_worker_may_use(tmp_path: Path) -> None:
    todo = toys.planned(Store(tmp_path), [scored(35)])
    assert [local.gpus_to_evaluate(todo, asked) for asked in (None, 1, 4)] == [2, 1, 4]
    with pytest.raises(ValueError, match=r"execution.gpus is 5, and this machine gives 4: ask for fewer"):
        local.gpus_to_evaluate(todo, 5)


@pytest.mark.parametrize("said", ["[N/A]", "[Insufficient Permissions]", "[Not Supported]"])
def test_gpus_whose_memory_nobody_tells_are_used_and_the_setting_for_large_models_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    machine(tmp_path, monkeypatch, f"81920\n{said}")
    todo = toys.planned(Store(tmp_path), [scored(35)])
    assert (gpus.names(), gpus.memory_gb(), local.gpus_to_evaluate(todo)) == (["0", "1"], 0, 1)
    assert capsys.readouterr().err.strip().endswith("a model is put on one; if that is too small, set execution.gpus")
    assert (local.gpus_to_evaluate(todo, 2), capsys.readouterr().err) == (2, "")


def test_the_memory_of_a_gpu_that_is_not_used_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, "81920\n[N/A]\n40960")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpus.memory_gb() == 80.0


@pytest.mark.usefixtures("four")
def test_a_part_of_a_gpu_is_not_taken_for_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "MIG-1a,MIG-2b")
    assert (gpus.names(), gpus.memory_gb()) == (["MIG-1a", "MIG-2b"], 0)


@pytest.mark.usefixtures("four")
def test_a_model_that_this_machine_cannot_hold_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1000 GB needs 15 GPUs of 80 GB to be scored, and this machine gives 4: use a larger one, or"):
        local.gpus_to_evaluate(toys.planned(Store(tmp_path), [scored(500)]))


@pytest.mark.usefixtures("four")
def test_a_worker_process_of_a_crew_has_the_gpus_of_its_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = toys.told(tmp_path / "results", []).model_copy(update={"how": Execution(gpus=2)})
    seen: list[str] = []

    class Worker:
        def __init__(self, _: object, *, env: dict[str, str], **__: object) -> None:
            seen.append(env[gpus.VISIBLE])

    sharing = {index: gpus.of_worker(index, 2) for index in range(2)}
    monkeypatch.setattr(gpus, "of_worker", lambda index, each, **_: sharing[index] if each == 2 else {})
    monkeypatch.setattr(local.subprocess, "Popen", Worker)
    local.Crew(told, 2).start()
    assert seen == ["0,1", "2,3"]
