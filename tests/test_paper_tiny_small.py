"""The main paper in miniature, much smaller still, by the command line: every stage and every figure of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from analysis.figures import REGISTRY
from compositions import CONF
from cpt_lab import study
from cpt_lab.store import State, Store
from cpt_lab.study import resolved

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::Warning:mlflow.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SHARE = 40  # of the tokens of every mixture one is left
FEWER = {  # of the swept values
    "0,0.125,0.25,0.375,0.5,0.75,1": "0,0.5,1",
    "0,10,20,30,40,50,60,70,80,90": "0,50",
    "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1": "0.5,1",
    "100K,200K,400K,null": "5K,10K,null",
    "_400k": "_10k",
    "_200k": "_5k",
    "_800k": "_20k",
    "study: paper_tiny": "study: small",
}
SMALL = (
    "+experiment=small",
    *(f"+corpora.{name}.{what}" for name in ("math", "inst", "text", "code") for what in ("documents=600", "held_out=20")),
    "pretrain.training.warmup_tokens=1024",
    "protocol.tasks=[{kind: generate, name: tiny_math, corpus: math, split: test, items: 8, max_new_tokens: 8},"
    "{kind: perplexity, name: tiny_text, corpus: text, split: validation, items: 4},"
    "{kind: perplexity, name: tiny_inst, corpus: inst, split: validation, items: 4},"
    "{kind: perplexity, name: tiny_code, corpus: code, split: validation, items: 4}]",
    "tracking=off",
)


def replaced(text: str) -> str:
    for old, new in FEWER.items():
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    for group in ("experiment", "mixture"):
        (folder / "conf" / group).mkdir(parents=True)
    (folder / "conf" / "experiment" / "small.yaml").write_text(replaced((CONF / "experiment" / "paper_tiny.yaml").read_text()))
    for path in (CONF / "mixture").glob("tiny_*00k.yaml"):
        data = yaml.safe_load(path.read_text())
        parts = [{**part, "tokens": part["tokens"] // SHARE, "oversample": True} for part in data["parts"]]
        name = replaced(path.stem)
        (folder / "conf" / "mixture" / f"{name}.yaml").write_text(yaml.safe_dump({**data, "name": name, "parts": parts}))
    command = [sys.executable, "-m", "cpt_lab", *SMALL, "--config-dir", str(folder / "conf"), f"results={folder}"]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not drawn" not in done.stdout, done.stdout
    return folder


def test_every_point_is_done(results: Path) -> None:
    store = Store(results)
    specs = resolved(store, study.load(store, "small").points)
    assert {store.status(spec).state for spec in specs.values()} == {State.DONE}


@pytest.mark.parametrize(
    "name", sorted(name for name, figure in REGISTRY.items() if any(paper.startswith("P ") for paper in figure.PAPERS))
)
def test_every_figure_and_table_of_the_main_paper_is_drawn(results: Path, name: str) -> None:
    files = {path.suffix for path in (results / "studies" / "small" / "figures").glob(f"{name}*")}
    assert files >= {".html", ".csv"}
    assert files >= {".png", ".pdf"} or files >= {".md", ".tex"}
