"""The mixtures, corpora and models of the papers, as their files have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from command_line import here
from compositions import CONF, composed, points
from cpt_lab import config
from cpt_lab import points as points_of
from cpt_lab.architecture import shape_from_config
from cpt_lab.specs import TrainedCheckpoint, identity
from factory import tiny_config
from long_tables import rest_slow
from paper_experiments import BILLION, POST_TRAINED, TABLE_2, corpus, mixture_of, shape_of

SOURCES = ("dolmino_math", "dclm", "flan", "stackexchange", "starcoder")
UNSTARRED_BUT_TOO_MUCH = {("16bdm_20b", "dolmino_math")}  # 16B of a corpus of 10.7B
AVAILABLE = {"dolmino_math": 10_700_000_000, "dclm": 752_000_000_000, "flan": 17_000_000_000}  # P table 1
# The numbers of weights that the releases state: an independent check of all sizes together.
WEIGHTS = {
    **{"olmo2_1b": 1_484_916_736, "olmo2_7b": 7_298_617_344, "olmo2_13b": 13_716_198_400, "olmo2_32b": 32_234_279_936},
    **{"qwen25_math_1_5b": 1_543_714_304, "qwen25_math_1_5b_instruct": 1_543_714_304, "r1_distill_qwen_1_5b": 1_777_088_000},
    **{"qwen25_math_7b": 7_615_616_512, "qwen25_math_7b_instruct": 7_615_616_512, "r1_distill_qwen_7b": 7_615_616_512},
    **{"llama31_8b": 8_030_261_248, "llama31_8b_instruct": 8_030_261_248, "r1_distill_llama_8b": 8_030_261_248},
    **{"qwen25_14b": 14_770_033_664, "qwen25_14b_instruct": 14_770_033_664, "r1_distill_qwen_14b": 14_770_033_664},
    **{"gpt2_small": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080},
    **{"pythia_160m": 162_322_944, "pythia_410m": 405_334_016, "pythia_1b": 1_011_781_632},
}
SCALES = {"olmo2_d8": (8, 30.4e6), "olmo2_d12": (12, 92.8e6), "olmo2_d16": (16, 285e6)}  # L: layers, weights


# ------------------------------------------------------------------------------------------------------------ mixtures


@pytest.mark.parametrize("name", TABLE_2)
def test_a_mixture_has_the_budgets_and_the_stars_of_the_paper(name: str) -> None:
    mixture = mixture_of(name)
    row = {source: cell for source, cell in zip(SOURCES, TABLE_2[name], strict=True) if cell is not None}
    assert {part.corpus: part.tokens for part in mixture.parts} == {source: int(cell[0] * BILLION) for source, cell in row.items()}
    stars = {source for source, cell in row.items() if cell[1] or (name, source) in UNSTARRED_BUT_TOO_MUCH}
    assert {part.corpus for part in mixture.parts if part.oversample} == stars
    total = sum(part.tokens for part in mixture.parts)
    assert name.endswith(f"_{total // BILLION}b")


@pytest.mark.parametrize("budget", [20, 100, 200, 400])
def test_pretraining_repeats_a_sample_of_100b_tokens_beyond_its_size(budget: int) -> None:
    (part,) = mixture_of(f"dclm_{budget}b").parts
    assert (part.corpus, part.tokens, part.oversample) == ("dclm_sample", budget * BILLION, budget > 100)
    assert corpus("dclm_sample")["available_tokens"] == 100 * BILLION


def test_a_corpus_has_as_many_tokens_as_the_paper_says() -> None:
    assert {name: corpus(name)["available_tokens"] for name in AVAILABLE} == AVAILABLE


@pytest.mark.parametrize("name", [*TABLE_2, "dclm_20b", "dclm_100b", "dclm_200b", "dclm_400b"])
def test_no_mixture_of_the_paper_asks_for_more_than_its_corpora_may_give(name: str) -> None:
    (studied,) = points("model=olmo2_1b", "base.from=hub", "training=cpt", "target=train", "mixture=math_20b")
    made = points_of.point({**studied.config, "mixture": mixture_of(name).model_dump()}, {})
    assert isinstance(made.spec, TrainedCheckpoint)
    assert made.spec.mixture.name == name


# -------------------------------------------------------------------------------------------------------------- models


@pytest.mark.slow
@pytest.mark.parametrize("model", WEIGHTS)
def test_a_model_of_the_sizes_in_its_file_has_as_many_weights_as_the_released_one(model: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(tiny_config(shape_of(model)))
    assert sum(parameter.numel() for parameter in made.parameters()) == WEIGHTS[model]


@pytest.mark.parametrize("model", WEIGHTS)
def test_the_sizes_in_a_file_are_those_read_back_from_a_configuration_made_of_them(model: str) -> None:
    shape = shape_of(model)
    assert identity(shape_from_config(tiny_config(shape).to_dict())) == identity(shape)


def test_every_model_is_a_released_one_or_of_a_scale_of_the_lifecycle_paper_or_tiny() -> None:
    assert {path.stem for path in (CONF / "model").glob("*.yaml")} == {"olmo2_tiny", *WEIGHTS, *SCALES}


@pytest.mark.parametrize("model", SCALES)
def test_a_scale_of_the_lifecycle_paper_has_its_layers_and_its_number_of_weights(model: str) -> None:
    layers, weights = SCALES[model]
    shape = shape_of(model)
    assert shape.num_layers == layers
    assert shape.parameters == pytest.approx(weights, rel=0.01)
    assert shape.num_heads * shape.head_dim == shape.hidden_size  # else OLMo 2 cannot be written in Hugging Face format


@pytest.mark.parametrize("model", rest_slow(POST_TRAINED, fast=1))
def test_a_tokenizer_is_that_of_its_own_model_wherever_the_file_is_put(model: str) -> None:
    (data,) = composed("+experiment=scale_transplant_" + model, "model@tuned.model=" + model, "intervention=none")
    parsed = config.parse(data)
    assert parsed.tuned.model is not None
    assert parsed.tuned.model.hub is not None
    assert parsed.tuned.model.tokenizer["id"] == parsed.tuned.model.hub.id == POST_TRAINED[model][0]


@pytest.mark.slow
def test_post_training_may_change_the_context_and_untie_the_embeddings_but_no_matrix(tmp_path: Any) -> None:
    base, tuned = shape_of("qwen25_math_1_5b"), shape_of("r1_distill_qwen_1_5b")
    changed = {name for name, value in identity(base).items() if identity(tuned)[name] != value}
    assert changed == {"context", "tied_embeddings"}
    words = ("plan", "+experiment=scale_transplant_qwen25_math_1_5b", f"results={tmp_path}")
    assert here(*words, "model@tuned.model=r1_distill_qwen_1_5b").code == 0
    said = here(*words, "model@tuned.model=qwen25_math_7b_instruct").refusal
    assert "hidden_size is 3584 in tuned and 1536 in base" in said
