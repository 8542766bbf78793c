"""A whole study through SLURM, on a real one-node cluster, gives what it gives without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cpt_lab import study
from cpt_lab.store import State, Store
from devcluster_fixture import running_devcluster
from factory import tiny_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

EXPERIMENT = """\
# @package _global_
defaults:
  - override /target: evaluate
  - override /intervention: rewind
  - override /criterion: random
  - override /protocol: tiny
  - override /tracking: 'off'
study: small
base: {{from: folder, path: {base}}}
tuned: {{from: folder, path: {tuned}}}
protocol:
  tasks:
    - {{kind: perplexity, name: tiny_text, corpus: math, split: validation, items: 6}}
corpora: {{math: {{documents: 40, held_out: 10}}}}
hydra:
  sweeper:
    params: {{criterion.seed: "0,1", intervention.fraction: "0,0.25,0.5,1"}}
"""


def launch(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cpt_lab", "+experiment=small", "--config-dir", str(folder / "conf"), *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=400, env={**os.environ})


def metrics(results: Path) -> dict[str, tuple[dict[str, object], str]]:
    """Point -> its metrics and every document's outcome."""
    store = Store(results)
    found = {}
    for name, spec in study.resolved(store, study.load(store, "small").points).items():
        assert store.status(spec).state is State.DONE, name
        samples = pd.read_parquet(store.product(spec) / "samples.parquet").to_json()
        found[name] = (study.scores(store, spec)["metrics"], samples)
    return found


def test_a_sweep_on_slurm_gives_bit_for_bit_the_results_of_the_local_run(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", seed=1, tokenizer=True)
    tuned = tiny_checkpoint(tmp_path / "tuned", seed=2, tokenizer=True)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "small.yaml").write_text(EXPERIMENT.format(base=base, tuned=tuned))
    here = launch(tmp_path, "results=here", "workers=1", "execution.threads=1")
    assert here.returncode == 0, here.stdout + here.stderr
    with running_devcluster():
        there = launch(tmp_path, "results=there", "hydra/launcher=slurm", "site=devcluster", "packs=2", "wait=true")
        status = subprocess.run(
            [sys.executable, "-m", "cpt_lab", "status", "small", "results=there"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert there.returncode == 0, there.stdout + there.stderr
    assert "8 done" in status.stdout
    assert "evaluate: job" in status.stdout
    assert metrics(tmp_path / "there") == metrics(tmp_path / "here")
