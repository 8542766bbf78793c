"""A whole study through SLURM, on a real one-node cluster: its results, and the commands that one gives while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from devcluster_fixture import running_devcluster
from products import contents
from small_quickstart import SMALL, cpt_lab

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_the_quickstart_on_slurm_gives_bit_for_bit_the_results_of_the_local_run(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    cpt_lab(here, *SMALL, "tracking=off", "workers=2")
    with running_devcluster():
        said = cpt_lab(there, *SMALL, "tracking=off", "hydra/launcher=slurm", "site=devcluster", "packs=2", "wait=true")
        status = cpt_lab(there, "status", "quickstart")
    stages = ("data", "pretrain", "cpt", "spectra", "tables", "rank", "evaluate")
    assert [stage for stage in stages if f"submitted {stage}: job " in said] == list(stages)
    assert "6 points: 6 done" in status
    assert "evaluate: job" in status
    ours, theirs = contents(here), contents(there)
    assert {name.partition("/")[0] for name in ours} >= {"corpora", "tokens", "checkpoints", "spectra", "rankings", "evaluations"}
    assert theirs.keys() == ours.keys()
    assert [name for name in sorted(ours) if theirs[name] != ours[name]] == []
