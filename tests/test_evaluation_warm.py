"""The warm evaluator: what it says when an edit breaks the model, and how it loads families with settings of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpt_lab.evaluation.loading import load_model
from cpt_lab.evaluation.warm import WarmEvaluator
from cpt_lab.execution import Execution
from cpt_lab.interventions.rewind import Rewind
from cpt_lab.specs import Evaluation, FolderCheckpoint, Heads, Patched, Spec, key
from evaluation_cases import build, protocol, sums_task
from factory import folder_spec, tiny_checkpoint, tiny_shape, workspace


def checkpoint(folder: Path, seed: int) -> FolderCheckpoint:
    return folder_spec(tiny_checkpoint(folder, seed=seed, tokenizer=True), tiny_shape())


def test_logits_that_are_not_finite_name_the_edit_and_the_task(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    base, tuned = checkpoint(tmp_path / "base", 1), checkpoint(tmp_path / "tuned", 2)
    file = tmp_path / "base" / "model.safetensors"
    save_file({name: torch.full_like(tensor, torch.inf) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    spec = protocol(sums_task())
    products = {key(base): tmp_path / "base", key(tuned): tmp_path / "tuned", key(spec): build(spec, tmp_path)}

    def product(wanted: Spec) -> Path:
        return products[key(wanted)]

    evaluator = WarmEvaluator(Execution())
    point = Evaluation(checkpoint=Patched(tuned=tuned, interventions=(Rewind(base=base, select=Heads(heads=((0, 1),))),)), protocol=spec)
    with pytest.raises(ValueError, match=r"^rewind-1heads: task sums: .* logits are not finite: look for the edit"):
        evaluator.score(point, workspace(tmp_path / "point"), product=product)
    evaluator.score(Evaluation(checkpoint=tuned, protocol=spec), workspace(tmp_path / "next"), product=product)  # the edit is undone


def test_a_family_with_a_soft_cap_is_loaded_with_an_attention_that_has_it(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "gemma", family="gemma2")
    model = load_model(folder, folder_spec(folder, tiny_shape("gemma2")), "float32", Execution())
    assert model.config._attn_implementation == "eager"
