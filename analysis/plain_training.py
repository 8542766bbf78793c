"""A training run by OLMo-core alone, written as its documentation writes one: what ours is measured against."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from olmo_core.data import NumpyDataLoaderConfig, NumpyFSLDatasetConfig, TokenizerConfig
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from olmo_core.optim import AdamWConfig, CosWithWarmup, OptimGroupOverride
from olmo_core.train import Duration, TrainerConfig
from olmo_core.train.callbacks import CheckpointerCallback
from olmo_core.train.train_module import TransformerTrainModuleConfig


def main(told: Path, scratch: Path, steps: int) -> None:
    """Train what the file tells for so many steps."""
    sizes = json.loads(told.read_text())
    torch.set_num_threads(1)
    model = TransformerConfig.llama_like(
        d_model=sizes["hidden"],
        vocab_size=sizes["vocab_size"],
        n_layers=sizes["layers"],
        n_heads=sizes["heads"],
        hidden_size_multiplier=1.5,
        block_name=TransformerBlockType.reordered_norm,
        qk_norm=True,
        layer_norm_eps=1e-6,
        rope_theta=500_000,
    ).build(init_device="cpu")
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=sizes["batch"] * sizes["length"],
        max_sequence_length=sizes["length"],
        optim=AdamWConfig(
            lr=1e-3, group_overrides=[OptimGroupOverride(params=["embeddings.weight"], opts={"weight_decay": 0.0})], fused=True
        ),
        max_grad_norm=1.0,
        z_loss_multiplier=1e-5,
        scheduler=CosWithWarmup(warmup_steps=2),
    ).build(model, device=torch.device("cpu"))
    tokenizer = TokenizerConfig(vocab_size=sizes["vocab_size"], eos_token_id=0, pad_token_id=0)
    dataset = NumpyFSLDatasetConfig(
        paths=[sizes["tokens"]], sequence_length=sizes["length"], tokenizer=tokenizer, dtype="uint16", work_dir=str(scratch)
    ).build()
    loader = NumpyDataLoaderConfig(global_batch_size=sizes["batch"] * sizes["length"], seed=0, work_dir=str(scratch)).build(dataset)
    TrainerConfig(
        save_folder=str(scratch / "states"),
        save_overwrite=True,
        max_duration=Duration.steps(steps),
        callbacks={"checkpointer": CheckpointerCallback(save_interval=None, pre_train_checkpoint=False, save_async=False)},
    ).build(module, loader).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
