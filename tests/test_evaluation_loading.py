"""Where a model's weights go: one device, several, or nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cpt_lab.evaluation.loading import FOR_WEIGHTS, load_model, must_spread
from cpt_lab.evaluation.prefix_attention import why_not
from cpt_lab.evaluation.session import EvalSession
from cpt_lab.execution import Execution
from cpt_lab.interventions import Rewind
from cpt_lab.patch import LiveModel, Patch
from cpt_lab.specs import Heads, HubCheckpoint
from evaluation_cases import build, protocol
from factory import tiny_checkpoint, tiny_model, tiny_shape, tiny_tokenizer

GB = 10**9


def test_a_model_that_fits_one_gpu_is_not_spread() -> None:
    assert not must_spread(int(FOR_WEIGHTS * 80 * GB), [80 * GB])
    assert not must_spread(14 * GB, [80 * GB, 80 * GB])


def test_a_model_that_fits_several_gpus_only_is_spread() -> None:
    assert must_spread(65 * GB, [80 * GB, 80 * GB])
    assert must_spread(100 * GB, [80 * GB, 80 * GB])


def test_a_model_that_fits_nowhere_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"take 65.0 GB and the 1 GPUs of this worker have 80.0 GB free.*more GPUs with execution.gpus"):
        must_spread(65 * GB, [80 * GB])


def test_a_spread_model_is_edited_in_place_and_scored_by_the_harness_s_own_side(tmp_path: Path) -> None:
    from accelerate import dispatch_model

    tuned, base = (tiny_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(("tuned", "base")))
    spec = protocol()
    product, tokenizer = build(spec, tmp_path / "protocol"), tiny_tokenizer()
    patch = Rewind(base=HubCheckpoint(id="a/base", revision="1", shape=tiny_shape()), select=Heads(heads=((0, 1), (1, 2)))).patch(
        tiny_shape()
    )
    scores = []
    for spread in (False, True):
        model = tiny_model(tiny_shape(), seed=0)
        if spread:
            places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu", "model.norm": "cpu"}
            model = dispatch_model(model, {**places, "model.rotary_emb": "cpu", "lm_head": "cpu"}, force_hooks=True)
            model.hf_device_map = {**places, "model.layers.1": "another"}  # there is but one device here
            assert why_not(model) == "its layers lie on several devices"
        live = LiveModel(model, tuned, {"base": base})
        live.set(patch)
        mode = "fast" if spread else "reference"
        scores.append(EvalSession(product, spec, tokenizer=tokenizer, how=Execution(mode=mode, eval_batch=4)).score(live.model))
        live.set(Patch())
    assert {answered["mode"] for answered in scores[1].answered.values()} == {"reference"}
    assert scores[0].metrics == scores[1].metrics
    assert torch.equal(next(iter(live.model.parameters())), next(iter(tiny_model(tiny_shape(), seed=0).parameters())))


SPEC = HubCheckpoint(id="a/model", revision="1", shape=tiny_shape())
SIZE = SPEC.shape.parameters * 4


def faked_gpus(patch: pytest.MonkeyPatch, free: list[int]) -> dict[str, Any]:
    """As many GPUs with so much free memory, and what is then asked of them when a model is loaded."""
    from transformers import AutoModelForCausalLM

    model, asked = tiny_model(tiny_shape(), seed=0), dict[str, Any]()
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: len(free))
    patch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 80 * GB))
    patch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **how: asked.update(how) or model)
    patch.setattr(type(model), "to", lambda here, device: asked.update(device=device) or here)
    return asked


@pytest.mark.parametrize("seen", [2, 3, 8])
def test_a_model_is_spread_over_no_more_gpus_than_its_worker_is_meant_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: int
) -> None:
    half = int(SIZE / FOR_WEIGHTS / 2) + 1
    asked = faked_gpus(monkeypatch, [half] * seen)
    load_model(tmp_path, SPEC, "float32", Execution(gpus=2))
    assert asked["max_memory"] == dict.fromkeys(range(2), int(FOR_WEIGHTS * half))
    with pytest.raises(ValueError, match=r"the 1 GPUs of this worker have .*more GPUs with execution\.gpus"):
        load_model(tmp_path, SPEC, "float32", Execution(gpus=1))


@pytest.mark.parametrize(("free", "spread"), [([80 * GB], False), ([80 * GB] * 4, False), ([1000] * 4, True), ([10**5, 10**5], True)])
def test_a_worker_puts_a_model_on_its_one_gpu_if_it_fits_and_else_over_all_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: list[int], spread: bool
) -> None:
    size = SIZE
    free = [memory if memory > size else int(size / FOR_WEIGHTS / len(free)) + 1 for memory in free]  # they just hold it together
    asked = faked_gpus(monkeypatch, free)
    load_model(tmp_path, SPEC, "float32", Execution(gpus=len(free)))
    if spread:
        assert asked["device_map"] == "auto"
        assert asked["max_memory"] == {index: int(FOR_WEIGHTS * memory) for index, memory in enumerate(free)}
        assert sum(asked["max_memory"].values()) >= size - len(free)
    else:
        assert (asked["device"], "device_map" in asked) == ("cuda", False)
