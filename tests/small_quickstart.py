"""The quickstart's whole way with small budgets: raw text, tokenizer, three trainings, spectra, rankings, six points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import PATIENCE, kill

SMALL = (
    "+experiment=quickstart",
    "intervention.fraction=0,0.5,1",
    "criterion=scaled_norm_diff",
    "+corpora.math.documents=400",
    "+corpora.math.held_out=20",
    "+corpora.text.documents=200",
    "+corpora.text.held_out=20",
    "mixture.parts=[{corpus: math, tokens: 8192}, {corpus: text, tokens: 2048}]",
    "reference.mixture.parts=[{corpus: text, tokens: 10240}]",
    "pretrain.mixture.parts=[{corpus: text, tokens: 10240}]",
    "pretrain.training.warmup_tokens=1024",
    "protocol.tasks=[{kind: generate, name: sums, corpus: math, split: test, items: 8, max_new_tokens: 8},"
    "{kind: perplexity, name: prose, corpus: text, split: validation, items: 6}]",
)


def cpt_lab(folder: Path, *words: str) -> str:
    """What `python -m cpt_lab WORDS` prints, with this folder for its results; it must succeed."""
    return ended(begun(folder, *words))


def begun(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m cpt_lab WORDS`, begun."""
    command = [sys.executable, "-m", "cpt_lab", *words]
    environment = {**os.environ, "CPT_LAB_RESULTS": str(folder)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed until it ended, well; it is killed if it does not end."""
    try:
        said, errors = process.communicate(timeout=4 * PATIENCE)
    finally:
        kill(process)
    assert process.returncode == 0, said + errors
    return said
