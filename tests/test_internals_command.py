"""The targets that look inside models, on the command line: folders in, tables and a sentence out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from command_line import Answer, here
from compositions import points
from cpt_lab.specs import Correlation
from factory import tiny_model, tiny_shape, tiny_tokenizer

TINY = ("tracking=off", "workers=1", "execution.device=cpu", "protocol=perplexity", "protocol.dtype=float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("tuned", "base")):
        tiny_model(tiny_shape(num_layers=4).but(context=2048), seed=seed).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


def run(folder: Path, *words: str) -> Answer:
    sources = [f"{part}.{name}={value}" for part in ("tuned", "base") for name, value in (("from", "folder"), ("path", folder / part))]
    return here(*sources, *TINY, f"results={folder / 'results'}", *words)


def table(folder: Path, start: str) -> pd.DataFrame:
    (found,) = (folder / "results" / "internals").glob(f"{start}-*/product/table.parquet")
    return pd.read_parquet(found)


@pytest.mark.slow
def test_entropies_and_similarities_of_an_edited_model_come_from_one_command_each(folder: Path) -> None:
    assert run(folder, "target=attention_entropy", "intervention=transplant", "internals.prompts=3").code == 0
    assert len(table(folder, "entropy-text-3-transplant")) == 4 * 4 * 3
    assert run(folder, "target=layer_similarity", "intervention=rotate_ablate", "internals.prompts=5").code == 0
    assert table(folder, "cka-text-5-rotate_ablate").cka.between(0, 1 + 1e-9).all()


@pytest.mark.slow
def test_two_criteria_are_correlated_over_the_layers_and_said_in_a_sentence(folder: Path) -> None:
    words = ["target=correlate", "criterion=ablation", "+criterion@other_criterion=spectral", "other_criterion.column=stable_rank"]
    answer = run(folder, *words, "other_criterion.of=tuned", "other_criterion.unit=layer")
    assert answer.code == 0, answer.err
    assert "ablation-layers-descending and spectral-stable_rank-layers-descending: Spearman " in answer.out
    assert "over 4 units" in answer.out


def test_a_correlation_needs_a_second_criterion() -> None:
    with pytest.raises(ValueError, match=r"add the other with \+criterion@other_criterion=NAME"):
        points("target=correlate", "criterion=ablation")


def test_a_task_that_the_protocol_has_not_is_refused_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match=r"internals.task: unknown task of protocol tiny 'gsm8k'"):
        points("target=attention_entropy", "internals.task=gsm8k")


def test_the_importance_of_layers_is_compared_with_one_measure_per_point() -> None:
    made = points("+experiment=importance_gpt2_small")
    assert [point.varies["column"] for point in made][:2] == ["pl_alpha", "weighted_alpha"]
    assert all(isinstance(point.spec, Correlation) and point.spec.one.criterion == "ablation" for point in made)
