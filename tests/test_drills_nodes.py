"""Training over two nodes of a real SLURM: the run is that of one process, and a rank that dies ends all of them and costs nothing."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from devcluster_fixture import running_devcluster
from processes import wait_for
from small_quickstart import SMALL, begun, cpt_lab, ended

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

STEPS = 40
TRAIN = (
    *(word for word in SMALL if not word.startswith(("intervention", "criterion", "protocol", "mixture"))),
    "study=two_nodes",
    "target=train",
    "intervention=none",
    "figures=[]",
    "hydra.sweeper.params={}",
    "hydra.sweeper.grids=[]",
    "mixture.parts=[{corpus: math, tokens: 32768, oversample: true}, {corpus: text, tokens: 8192}]",
    "execution.checkpoint_minutes=0.0001",
    "tracking=off",
)
ON_TWO_NODES = ("hydra/launcher=slurm", "site=devcluster", "+site.stages={pretrain: {nodes: 2}, cpt: {nodes: 2}}", "wait=true")


@dataclass(frozen=True)
class Runs:
    """The same study by one process here, and there on two nodes, where a rank of its second training was killed."""

    here: Path
    there: Path
    nodes: set[str]  # where ranks ran
    step: int  # that was kept when one was killed
    killed: float  # when
    left: list[int]  # of the first ranks, after the run had been begun anew


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    cpt_lab(here, *TRAIN, "workers=1")
    with running_devcluster("--nodes", "2"):
        launched = begun(there, *TRAIN, *ON_TWO_NODES)
        try:
            wait_for(lambda: kept_step(there) >= STEPS // 4, what="a state to go on from")
            step, first = kept_step(there), ranks(there)
            nodes = {one.environ()["SLURMD_NODENAME"] for one in first}
            next(one for one in first if one.environ()["SLURMD_NODENAME"] == "dev2").kill()
            killed = time.time()
            wait_for(lambda: len({one.pid for one in ranks(there)} - {one.pid for one in first}) == 2, what="the second try")
            left = [one.pid for one in first if one.is_running()]
        finally:
            ended(launched)
    return Runs(here, there, nodes, step, killed, left)


def ranks(results: Path) -> list[psutil.Process]:
    """The processes that train, without torchrun and srun."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words[1:3] == ["-u", "-m"] and "cpt_lab.training.rank" in words and str(results) in " ".join(words):
            found.append(process)
    return found


def folder(results: Path, stage: str) -> Path:
    (found,) = results.glob(f"checkpoints/{stage}-*")
    return found


def kept_step(results: Path) -> int:
    """The newest step of the second training that can be gone on from."""
    return max((int(path.parent.name[4:]) for path in results.glob("checkpoints/cpt-*/scratch/states/step*/.metadata.json")), default=0)


def metrics(results: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder(results, stage) / "product" / "metrics.jsonl").read_text().splitlines()]


# Rounding grows with the steps, and fastest in single gradients: 10 steps, and 40 more.
@pytest.mark.parametrize(
    ("stage", "names", "rounding"), [("pretrain", ("loss", "z_loss", "grad_norm", "lr"), 2e-4), ("cpt", ("loss", "z_loss", "lr"), 1e-3)]
)
def test_two_nodes_learn_what_one_process_learns(runs: Runs, stage: str, names: tuple[str, ...], rounding: float) -> None:
    one, two = metrics(runs.here, stage), metrics(runs.there, stage)
    for name in ("step", *names):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=rounding)
    assert runs.nodes == {"dev1", "dev2"}


def test_a_rank_that_is_killed_on_one_node_ends_that_of_the_other_and_the_run_goes_on_from_its_last_state(runs: Runs) -> None:
    assert runs.left == []
    lines = metrics(runs.there, "cpt")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines[runs.step - 1]["time"] < runs.killed < lines[-1]["time"]  # what came before was not done again
    assert json.loads((folder(runs.there, "cpt") / "status.json").read_text())["attempts"] == 2
    log = (folder(runs.there, "cpt") / "log.txt").read_text()
    assert "ProcessLost: a process of the run died without a word" in log
