"""The score of a live, edited model is that of the same weights on disk under the harness's own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cpt_lab.evaluation.session import EvalSession, Scores
from cpt_lab.execution import Execution
from evaluation_cases import build, protocol, taught_model

HARNESS_NAMES = {"exact_match,strict-match": "exact_match_strict", "exact_match,flexible-extract": "exact_match_flexible"}
PERPLEXITIES = ("bits_per_byte", "byte_perplexity", "word_perplexity")


@pytest.mark.slow
def test_a_live_edited_model_scores_as_its_saved_copy_under_the_command_line(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    product = build(protocol(), tmp_path)
    model, tokenizer = taught_model()
    session = EvalSession(product, protocol(), tokenizer=tokenizer, how=Execution(eval_batch=3))
    before = session.score(model)  # the edit meets a session that has scored already
    edit(model)
    live = session.score(model)
    slow = EvalSession(product, protocol(), tokenizer=tokenizer, how=Execution(mode="reference", eval_batch=3)).score(model)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    results, samples = command_line(folder, product, tmp_path / "elsewhere")

    theirs = results["cpt_sums"]
    for name, ours in HARNESS_NAMES.items():
        metric = live.metrics[f"sums/{ours}"]
        assert metric["value"] == theirs[name]
        assert metric["stderr"] == pytest.approx(theirs[name.replace(",", "_stderr,")], rel=1e-12)
    for name in PERPLEXITIES:
        assert live.metrics[f"prose/{name}"]["value"] == pytest.approx(results["cpt_prose"][f"{name},none"], rel=1e-6)
        assert slow.metrics[f"prose/{name}"]["value"] == results["cpt_prose"][f"{name},none"]
    assert answers(live) == [sample["resps"][0][0] for sample in samples if sample["filter"] == "strict-match"]
    assert len(set(answers(live))) == 4
    assert live.metrics != before.metrics
    assert 0 < live.metrics["sums/exact_match_strict"]["value"] < 1


def edit(model: Any) -> None:
    """Weaken one head in place: some answers stay right."""
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 8:16] *= 0.9


def answers(scores: Scores) -> list[str]:
    return list(scores.samples["answer"][scores.samples["task"] == "sums"])


def command_line(model: Path, product: Path, elsewhere: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results by task, and the samples of the sums, of `lm_eval run` in a process of its own, in a folder of its own."""
    elsewhere.mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "hub"), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    arguments = ["run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--batch_size", "3"]
    tasks = ["--tasks", "cpt_sums,cpt_prose", "--include_path", str(product), "--output_path", "out", "--log_samples"]
    command = [sys.executable, "-m", "lm_eval", *arguments, *tasks]
    done = subprocess.run(command, cwd=elsewhere, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (elsewhere / "out").rglob("results_*.json")
    (samples,) = (elsewhere / "out").rglob("samples_cpt_sums_*.jsonl")
    lines = samples.read_text(encoding="utf-8").strip("\n").split("\n")
    return json.loads(results.read_text())["results"], sorted(map(json.loads, lines), key=lambda sample: int(sample["doc_id"]))
