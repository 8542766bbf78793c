"""One run as several processes: how they are started, how they share the work, and how they end."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cpt_lab.execution import Execution
from cpt_lab.failures import ProcessLost
from cpt_lab.specs import Mixture, Part
from cpt_lab.training import checks, memory, ranks
from cpt_lab.training.ranks import Team
from cpt_lab.training.run import train_here
from processes import wait_for
from training_cases import CORPUS, MIXTURE, OLD_IMPORTS, ON_CPU, RECIPE, SHAPE, SPEC, Made, metrics, same_bits, weights, workspace

BATCH = RECIPE.batch_tokens
TWO = ON_CPU.model_copy(update={"ranks": 2, "checkpoint_minutes": 1e-9})
LONG = SPEC.but(mixture=Mixture(name="long", parts=(Part(corpus=CORPUS, tokens=60 * BATCH, oversample=True),)))
pytestmark = OLD_IMPORTS


def children(word: str) -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if word in " ".join(one.cmdline())]


@contextmanager
def after_steps(folder: Path, steps: int, act: object) -> Iterator[None]:
    """Do something in another thread as soon as the run below this folder has a state of so many steps."""

    def watch() -> None:
        while not ended.is_set():
            if any(int(path.parent.name[4:]) >= steps for path in folder.glob("scratch/states/step*/.metadata.json")):
                act()  # type: ignore[operator]
                return
            time.sleep(0.02)

    ended = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# ------------------------------------------------------------------------------------------------------------ how many


def test_a_cpu_has_one_process_unless_more_are_asked_for() -> None:
    assert ranks.team(ON_CPU, {}) == Team(1, 1)
    assert ranks.team(TWO, {}) == Team(1, 2)
    assert ranks.team(TWO, {"SLURM_JOB_NUM_NODES": "4"}) == Team(4, 2)


def test_a_gpu_has_one_process_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert ranks.team(Execution(), {"SLURM_JOB_NUM_NODES": "8"}).size == 64


@pytest.mark.parametrize(("batch", "size", "near"), [(512, 24, 16), (4, 3, 2), (6, 4, 3)])
def test_a_batch_that_ranks_cannot_share_is_refused_with_a_number_that_can(batch: int, size: int, near: int) -> None:
    with pytest.raises(ValueError, match=f"a batch of {batch} sequences cannot be shared evenly by {size} ranks: use {near},"):
        ranks.check(batch, size)
    ranks.check(batch, near)


def test_a_wish_to_stop_that_was_meant_for_ranks_of_an_earlier_attempt_does_not_stop_one_process(tmp_path: Path, made: Made) -> None:
    stop = tmp_path / "scratch" / ranks.FOLDER / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    before = signal.signal(signal.SIGUSR2, lambda *_: None)  # a run that is stopped passes the signal on
    try:
        assert (made.train(tmp_path, LONG) / "model.safetensors").is_file()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_run_refuses_ranks_before_it_starts_them(tmp_path: Path, made: Made) -> None:
    with pytest.raises(ValueError, match="a batch of 4 sequences cannot be shared evenly by 3 ranks"):
        made.train(tmp_path, how=ON_CPU.model_copy(update={"ranks": 3}))
    assert not (tmp_path / "scratch" / "ranks").exists()


def test_one_node_needs_no_meeting_point_and_no_srun() -> None:
    command = ranks.command(Path("/job.json"), Team(1, 8), "cuda", {"SLURM_JOB_ID": "7"})
    assert command[1:4] == ["-m", "torch.distributed.run", "--nproc-per-node=8"]
    assert "--standalone" in command
    assert "--max-restarts=0" in command
    assert command[-3:] == ["-m", "cpt_lab.training.rank", "/job.json"]


def test_several_nodes_meet_at_an_address_and_port_of_the_job_and_end_together() -> None:
    place = {"SLURM_JOB_ID": "70007", "SLURMD_NODENAME": "node3", "SLURM_CPUS_PER_TASK": "12"}
    command = ranks.command(Path("/job.json"), Team(4, 8), "cuda", place)
    wanted = ["--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpus-per-task=12", "--gpus-per-node=8"]
    assert command[0] == "srun"
    assert set(wanted) <= set(command[: command.index("-m")])
    assert {"--nnodes=4", "--rdzv-backend=c10d", "--rdzv-endpoint=node3:30007", "--rdzv-id=70007"} <= set(command)


# ----------------------------------------------------------------------------------------------------- what they learn


@pytest.mark.slow
def test_two_processes_see_the_same_documents_and_learn_the_same(tmp_path: Path, made: Made) -> None:
    alone, together = made.train(tmp_path / "alone"), made.train(tmp_path / "together", how=TWO, keep=(8 * BATCH,))
    for name in ("loss", "z_loss", "grad_norm", "lr"):
        assert [line[name] for line in metrics(together)] == pytest.approx([line[name] for line in metrics(alone)], rel=2e-4)
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(together)[name], tensor, rtol=0, atol=2e-3)
    assert weights(together / "intermediates" / str(8 * BATCH)).keys() == weights(alone).keys()


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on_to_the_same_bits(tmp_path: Path, made: Made) -> None:
    def kill() -> None:
        next(one for one in children("cpt_lab.training.rank") if "torch.distributed.run" not in " ".join(one.cmdline())).kill()

    work = workspace(tmp_path / "killed")
    with after_steps(work.folder, 20, kill), pytest.raises(ProcessLost, match="a process of the run died without a word"):
        made.train(work, LONG, how=TWO)
    assert children("cpt_lab.training.rank") == []
    assert same_bits(made.train(work, LONG, how=TWO), made.train(tmp_path / "whole", LONG, how=TWO))
    assert [line["step"] for line in metrics(work.product)] == list(range(1, 61))
    assert work.seconds == json.loads((work.product / "training.json").read_text())["seconds"]


@pytest.mark.slow
def test_a_signal_to_the_process_that_started_the_ranks_saves_their_state_first(tmp_path: Path, made: Made) -> None:
    class Told(BaseException):
        pass

    def raise_told(*_: object) -> None:
        raise Told

    work, before = workspace(tmp_path), signal.signal(signal.SIGUSR2, raise_told)
    rarely = ON_CPU.model_copy(update={"ranks": 2, "checkpoint_minutes": 60})
    main = threading.main_thread().ident
    assert main is not None

    def tell() -> None:
        while not (work.scratch / "metrics.jsonl").exists() or "step" not in (work.scratch / "metrics.jsonl").read_text():
            time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGUSR2)

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        with pytest.raises(Told):
            made.train(work, LONG, how=rarely)
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert children("cpt_lab.training.rank") == []
    (state,) = (work.scratch / "states").glob("step*/.metadata.json")
    made.train(work, LONG, how=rarely)
    steps = [line["step"] for line in metrics(work.product)]
    assert steps == list(range(1, 61))
    assert 0 < int(state.parent.name[4:]) < 60


@pytest.mark.slow
def test_what_a_rank_raises_is_raised_where_they_were_started(tmp_path: Path, made: Made) -> None:
    with pytest.raises(ValueError, match=r"training diverged: the loss of step \d+ is no number: .* held documents \d+"):
        made.train(tmp_path, SPEC.but(recipe=RECIPE.but(lr=1e38, warmup_tokens=0)), how=TWO)


@pytest.mark.slow
@pytest.mark.parametrize(("looks", "keep", "message"), [(0, (), "2 states .*, 1 folders"), (1, (), "1 states"), (1, (BATCH,), "1 folders")])
def test_all_ranks_fail_alike_when_the_first_finds_no_room(
    looks: int, keep: tuple[int, ...], message: str, tmp_path: Path, made: Made
) -> None:
    torch.multiprocessing.spawn(train_until_no_room, args=(tmp_path, made, looks, keep), nprocs=2)
    first, second = ((tmp_path / f"error{rank}").read_text() for rank in range(2))
    assert first == second
    assert re.search(rf"training smallest needs .* for {message} .* free some space", first)


def train_until_no_room(rank: int, folder: Path, made: Made, looks: int, keep: tuple[int, ...]) -> None:
    """One of two processes; the first one finds room so many times, and the other would always."""
    import torch.distributed as dist

    free = iter([10**12] * looks if rank == 0 else itertools.repeat(10**12))
    checks.shutil.disk_usage = lambda _: SimpleNamespace(free=next(free, 0))
    torch.set_num_threads(1)
    os.environ.update({"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "OLMO_SHARED_FS": "1"})
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    work = workspace(folder)
    work.scratch.mkdir(exist_ok=True)
    try:
        train_here(SPEC, work, inputs=replace(made.inputs, keep=keep), how=TWO)
    except OSError as error:
        (folder / f"error{rank}").write_text(str(error))
    wait_for((folder / f"error{1 - rank}").exists, what="the other's failing")  # what it has not heard yet goes with this process
    os._exit(0)  # what is under way in other threads is nobody's any more


SRUN = """#!/bin/bash
# Two nodes on one machine: what srun is asked to start once per node is started twice.
while [[ "$1" == --* ]]; do shift; done
"$@" & "$@" & wait -n; code=$?; wait; exit $code
"""


@pytest.mark.slow
def test_two_nodes_meet_and_train_as_one_run(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text(SRUN)
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    alone = made.train(tmp_path / "alone")
    place = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "2"}
    for name, value in {**place, "SLURMD_NODENAME": "localhost"}.items():
        monkeypatch.setenv(name, value)
    together = made.train(tmp_path / "together")
    assert [line["loss"] for line in metrics(together)] == pytest.approx([line["loss"] for line in metrics(alone)], rel=2e-4)


# ------------------------------------------------------------------------------------------------------- what they hold


@given(
    share=st.integers(1, 600),
    gigabytes=st.integers(1, 200),
    sharded=st.sampled_from([1, 2, 8]),
    mode=st.sampled_from(["none", "half", "full"]),
)
def test_a_micro_batch_divides_the_share_and_grows_with_memory(share: int, gigabytes: int, sharded: int, mode: str) -> None:
    def fits(total: int) -> int:
        return memory.sequences_that_fit(SHAPE, RECIPE, share=share, total=total, sharded=sharded, checkpointing=mode)

    small, large = fits(gigabytes * 10**6), fits(2 * gigabytes * 10**6)
    assert share % small == share % large == 0
    assert 1 <= small <= large <= share


def test_recomputed_layers_and_a_fused_loss_leave_room_for_more() -> None:
    plain, half, full = (memory.activation_bytes(SHAPE, RECIPE, checkpointing=mode) for mode in ("none", "half", "full"))
    assert full <= half < plain
    assert plain - memory.activation_bytes(SHAPE, RECIPE, fused_loss=True) == 12 * SHAPE.vocab_size * RECIPE.sequence_length


def test_errors_travel_by_file(tmp_path: Path) -> None:
    for rank, error in enumerate((ValueError("a"), OSError(28, "b"), MemoryError("c"), KeyError("d"), torch.OutOfMemoryError("CUDA e"))):
        ranks.report(tmp_path, rank, error)
    kinds = [json.loads((tmp_path / f"error-{rank}.json").read_text())["kind"] for rank in range(5)]
    assert kinds == ["value", "system", "memory", "other", "other"]
    assert MIXTURE.tokens == 20 * BATCH
