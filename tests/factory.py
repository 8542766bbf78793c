"""Tiny random models of every family, made on the spot: the stand-ins for checkpoints in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cpt_lab.specs import FolderCheckpoint, ModelShape
from cpt_lab.store import Workspace

SENTENCES = (
    "The river runs past 3 mills and 14 houses before it meets the sea.",
    "Anna has 7 apples and gives 2 of them to Tom. How many are left?",
    "def area(width, height):\n    return width * height",
    "Question: what is 12 + 30? Answer: 42 #### 42",
)
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
        head_dim=8,
        mlp_size=48,
        vocab_size=320,
        context=128,
        rope_theta=10000.0,
        norm_eps=1e-6,
        tied_embeddings=tied,
    )


def tiny_model(shape: ModelShape, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random transformers model of this shape. Norms are random too, so that a test can tell them apart."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        shape.family,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, width = (1.0, 0.3) if name.endswith("norm.weight") else (0.0, 0.2)
            parameter.copy_(torch.normal(mean, width, parameter.shape, generator=generator))
    return model


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
