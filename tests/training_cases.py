"""A run of a few steps on a built-in corpus, and what it needs, made once for all tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cpt_lab.data import builtin, tokenizer, tokens
from cpt_lab.execution import Execution
from cpt_lab.specs import BpeTokenizer, BuiltinCorpus, Mixture, ModelShape, Part, Recipe, Tokens, TrainedCheckpoint
from cpt_lab.store import Workspace
from cpt_lab.training.run import Inputs, train

# A deprecated use of torch's distributed package by what olmo_core imports.
OLD_IMPORTS = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
CORPUS = BuiltinCorpus(name="math", documents=600, held_out=20)
TOKENIZER = BpeTokenizer(corpora=(CORPUS,), vocab_size=320)
SHAPE = ModelShape(
    name="smallest",
    family="olmo2",
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_size=48,
    vocab_size=320,
    context=48,
    rope_theta=10000.0,
)
RECIPE = Recipe(
    sequence_length=32, batch_sequences=4, lr=1e-2, schedule="cosine", lr_final_share=0.1, warmup_tokens=640, precision="fp32", seed=1
)
STEPS = 20
MIXTURE = Mixture(name="math", parts=(Part(corpus=CORPUS, tokens=STEPS * RECIPE.batch_tokens),))
SPEC = TrainedCheckpoint(shape=SHAPE, tokenizer=TOKENIZER, mixture=MIXTURE, recipe=RECIPE)
ON_CPU = Execution(device="cpu", threads=1, validations=0)


class ListenedWorkspace(Workspace):
    """A workspace whose progress a test can listen to."""

    listener: Callable[[float], None] | None = None

    def progress(self, done: float, total: float, unit: str) -> None:  # noqa: ARG002
        assert 0 <= done <= total
        if self.listener is not None:
            self.listener(done)


def workspace(folder: Path) -> ListenedWorkspace:
    (folder / "product").mkdir(parents=True, exist_ok=True)
    return ListenedWorkspace(folder, folder / "product")


@dataclass(frozen=True)
class Made:
    """The products that SPEC needs."""

    corpus: Path
    tokenizer: Path
    tokens: Path

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.tokens,), self.tokenizer)

    def train(self, where: Path | ListenedWorkspace, spec: TrainedCheckpoint = SPEC, *, how: Execution = ON_CPU, **inputs: Any) -> Path:
        """The folder of the trained checkpoint."""
        work = where if isinstance(where, ListenedWorkspace) else workspace(where)
        train(spec, work, inputs=replace(self.inputs, **inputs), how=how)
        return work.product


def make(folder: Path) -> Made:
    """Corpus, tokenizer and token file of SPEC."""
    made = [workspace(folder / name) for name in ("corpus", "tokenizer", "tokens")]
    builtin.build_corpus(CORPUS, made[0])
    tokenizer.build_tokenizer(TOKENIZER, [made[0].product], made[1])
    tokens.build_tokens(Tokens(corpus=CORPUS, tokenizer=TOKENIZER), made[0].product, made[1].product, made[2])
    return Made(*(work.product for work in made))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def same_bits(left: Path, right: Path) -> bool:
    first, second = weights(left), weights(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
