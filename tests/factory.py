"""Tiny random models of every family, made on the spot: the stand-ins for checkpoints in tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from cpt_lab.families import FAMILIES
from cpt_lab.specs import FolderCheckpoint, ModelShape
from cpt_lab.store import Workspace

SENTENCES = (
    "The river runs past 3 mills and 14 houses before it meets the sea.",
    "Anna has 7 apples and gives 2 of them to Tom. How many are left?",
    "def area(width, height):\n    return width * height",
    "Question: what is 12 + 30? Answer: 42 #### 42",
)
# One of each way to store a layer: norms over q and k, grouped heads, fused rows, interleaved rows, fused columns. What differs from them
# in names and switches alone is tested with the slow ones.
FAST_FAMILIES = ("olmo2", "llama", "phi3", "gpt_neox", "gpt2")
WIDE_HEADS = ("gemma2", "qwen3")  # their head_dim is a setting of its own, not hidden_size / num_heads
SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>")


def tiny_shape(
    family: str = "olmo2", *, num_layers: int = 2, num_heads: int = 4, num_kv_heads: int | None = None, tied: bool = False
) -> ModelShape:
    """Hidden size 32, heads of 8, MLP 48: small enough for any test, every size different where it may be."""
    return ModelShape(
        name=f"tiny_{family}",
        family=family,
        hidden_size=8 * num_heads,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=16 if family.startswith(WIDE_HEADS) else 8,
        mlp_size=48,
        vocab_size=320,
        context=128,
        rope_theta=0.0 if family == "gpt2" else 10000.0,
        norm_eps=1e-6,
        tied_embeddings=tied,
    )


def tiny_shapes(*, kv_heads: tuple[int, ...] = (4, 2, 1)) -> list[ModelShape]:
    """Every row of FAMILIES with the heads' k and v of their own and, where it may be, shared; and with every switch turned."""
    rows = ((name, row.grouped) for name, row in FAMILIES.items())
    shapes = [tiny_shape(name, num_kv_heads=heads) for name, grouped in rows for heads in kv_heads if grouped or heads == 4]
    turned = {name: "".join(f"{'-' if one.default else '+'}{one.name}" for one in row.switches) for name, row in FAMILIES.items()}
    return shapes + [
        tiny_shape(name + changes, num_kv_heads=2 if FAMILIES[name].grouped else 4) for name, changes in turned.items() if changes
    ]


def each_family(cases: Iterable[ModelShape | str]) -> list[Any]:
    """Parameters of a test: shapes, or families by name, of which those of FAST_FAMILIES are fast."""
    families = {case: case if isinstance(case, str) else case.family for case in cases}
    return [case if family in FAST_FAMILIES else pytest.param(case, marks=pytest.mark.slow) for case, family in families.items()]


def tiny_model(shape: ModelShape, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random transformers model of this shape. Norms are random too, so that a test can tell them apart."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config(shape), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, width = (1.0, 0.3) if re.search(r"(norm|ln_\w)\.weight$", name) else (0.0, 0.2)
            parameter.copy_(torch.normal(mean, width, parameter.shape, generator=generator))
    return model


def tiny_config(shape: ModelShape) -> Any:
    """The transformers configuration of a shape, with the settings that its family has, by the family's names."""
    from transformers import AutoConfig

    model_type, *switches = re.split(r"(?=[+-])", shape.family)
    sizes = {
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied_embeddings,
        **{"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1},
        **{switch[1:]: switch[0] == "+" for switch in switches},
    }
    if model_type == "gpt2":
        own = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads, "n_inner": shape.mlp_size}
        return AutoConfig.for_model(model_type, **own, n_positions=shape.context, layer_norm_epsilon=shape.norm_eps, **sizes)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    sizes |= {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": shape.mlp_size,
        "max_position_embeddings": shape.context,
        "rope_parameters": {"sliding_attention": rope, "full_attention": rope} if model_type == "olmo3" else rope,
    }
    if model_type == "gpt_neox":
        return AutoConfig.for_model(model_type, layer_norm_eps=shape.norm_eps, **sizes)
    sizes |= {"num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim, "rms_norm_eps": shape.norm_eps}
    return AutoConfig.for_model(model_type, **sizes)


def tiny_checkpoint(
    folder: Path,
    *,
    family: str = "olmo2",
    seed: int = 0,
    num_layers: int = 2,
    num_kv_heads: int | None = None,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = False,
    shard_size: str = "5GB",
) -> Path:
    """A random tiny model saved as safetensors in `folder`, with a byte-level BPE tokenizer if asked; returns the folder."""
    shape = tiny_shape(family, num_layers=num_layers, num_kv_heads=num_kv_heads, tied=tied)
    tiny_model(shape, seed=seed, dtype=dtype).save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        tiny_tokenizer(shape.vocab_size).save_pretrained(folder)
    return folder


def folder_spec(folder: Path, shape: ModelShape) -> FolderCheckpoint:
    """The spec of a tiny checkpoint; the folder's name stands for its digest."""
    return FolderCheckpoint(path=str(folder), weights_digest=folder.name, shape=shape)


def workspace(folder: Path) -> Workspace:
    """A builder's workspace outside of any store."""
    product = folder / "product"
    product.mkdir(parents=True)
    return Workspace(folder, product)


def tiny_tokenizer(vocab_size: int = 320) -> Any:
    """A byte-level BPE trained on a few sentences, digits split one by one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=SPECIAL_TOKENS[0], pad_token=SPECIAL_TOKENS[1])
