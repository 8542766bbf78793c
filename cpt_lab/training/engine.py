"""Our specs in OLMo-core's terms: model, optimiser, schedule, data loader and trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from olmo_core.data import NumpyDataLoaderBase
    from olmo_core.nn.transformer import Transformer, TransformerConfig
    from olmo_core.optim.scheduler import Scheduler
    from olmo_core.train import Trainer
    from olmo_core.train.callbacks import Callback
    from olmo_core.train.train_module import TransformerTrainModule

    from cpt_lab.execution import Execution
    from cpt_lab.specs import ModelShape, Recipe
    from cpt_lab.training.mixing import Mixed

COLLECT_STEPS = 5  # metrics are fetched from the device so often


def model_config(shape: ModelShape, *, seed: int) -> TransformerConfig:
    """OLMo 2 of this shape: norms after attention and MLP, RMS norm over the whole q and k projections, SwiGLU, no biases.

    ValueError for another family, or for heads that do not fill the hidden size, which OLMo 2's released configuration cannot express.
    """
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig

    if shape.family != "olmo2":
        raise ValueError(f"model {shape.name} is of family {shape.family}, but only olmo2 can be trained: choose a model of that family")
    if shape.num_heads * shape.head_dim != shape.hidden_size:
        raise ValueError(
            f"model {shape.name} has {shape.num_heads} heads of {shape.head_dim}, but hidden_size {shape.hidden_size}: "
            "an OLMo 2 needs num_heads x head_dim = hidden_size"
        )
    return TransformerConfig.llama_like(
        d_model=shape.hidden_size,
        vocab_size=shape.vocab_size,
        n_layers=shape.num_layers,
        n_heads=shape.num_heads,
        n_kv_heads=shape.num_kv_heads,
        feed_forward=FeedForwardConfig(hidden_size=shape.mlp_size, bias=False),
        block_name=TransformerBlockType.reordered_norm,
        qk_norm=True,
        layer_norm_eps=shape.norm_eps,
        rope_theta=int(shape.rope_theta),
        tie_word_embeddings=shape.tied_embeddings,
        init_seed=seed,
    )


def load_start(model: Transformer, start: Path) -> None:
    """Copy the weights of a Hugging Face folder into the model; ValueError naming the first parameter whose shape differs."""
    from olmo_core.nn.hf.checkpoint import load_hf_model

    own = model.state_dict()
    loaded = dict(own)
    load_hf_model(start, loaded)
    for name, tensor in own.items():
        if loaded[name].shape != tensor.shape:
            raise ValueError(
                f"training starts from {start}, whose {name} has shape {tuple(loaded[name].shape)}, but the model's has "
                f"{tuple(tensor.shape)}: choose the model that the start was made with"
            )
    model.load_state_dict(loaded)


def build_train_module(shape: ModelShape, recipe: Recipe, *, start: Path | None, device: str, how: Execution) -> TransformerTrainModule:
    """The model, with random weights drawn from `recipe.seed` or with those of the Hugging Face folder `start`, ready to train.

    AdamW without weight decay on embeddings (P appendix B.2), schedule, z-loss, clipping and precision as the recipe says. ValueError if
    the micro-batch does not divide the batch, or if the start does not fit the shape.
    """
    import torch
    from olmo_core.config import DType
    from olmo_core.optim import AdamWConfig, OptimGroupOverride
    from olmo_core.train.train_module import TransformerTrainModuleConfig

    sequences = how.micro_batch_sequences or recipe.batch_sequences
    if recipe.batch_sequences % sequences:
        raise ValueError(
            f"micro-batches of {sequences} sequences do not divide a batch of {recipe.batch_sequences}: "
            "choose a divisor of training.batch_sequences"
        )
    sequences = next(rows for rows in range(how.rows(sequences), 0, -1) if recipe.batch_sequences % rows == 0)
    optimiser = AdamWConfig(
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
        group_overrides=[OptimGroupOverride(params=["embeddings.weight"], opts={"weight_decay": 0.0})],
    )
    model = model_config(shape, seed=recipe.seed).build(init_device="cpu")
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=sequences * recipe.sequence_length,
        max_sequence_length=recipe.sequence_length,
        optim=optimiser,
        max_grad_norm=recipe.max_grad_norm,
        scheduler=schedule(recipe),
        z_loss_multiplier=recipe.z_loss or None,
        autocast_precision=DType.bfloat16 if recipe.precision == "bf16" else None,
    ).build(model, device=torch.device(device))
    if start is not None:
        load_start(module.model, start)  # only now: the train module draws the weights anew
    return module


def schedule(recipe: Recipe) -> Scheduler:
    """Linear warm-up over `warmup_tokens`, then cosine or linear to `lr_final_share` of the peak at the last token."""
    from olmo_core.optim import CosWithWarmup, LinearWithWarmup
    from olmo_core.optim.scheduler import SchedulerUnits

    kind = CosWithWarmup if recipe.schedule == "cosine" else LinearWithWarmup
    return kind(units=SchedulerUnits.tokens, warmup=recipe.warmup_tokens, alpha_f=recipe.lr_final_share)


def build_loader(mixed: Mixed, recipe: Recipe, *, scratch: Path, device: str) -> NumpyDataLoaderBase:
    """Sequences of the mixed file in an order drawn from `recipe.seed`; what is left below a whole batch is not used."""
    from olmo_core.data import NumpyDataLoaderConfig, NumpyDatasetDType, NumpyFSLDatasetConfig, TokenizerConfig

    dataset = NumpyFSLDatasetConfig(
        paths=[str(mixed.path)],
        sequence_length=recipe.sequence_length,
        tokenizer=TokenizerConfig(vocab_size=mixed.vocab_size, eos_token_id=mixed.eos, pad_token_id=mixed.eos),
        dtype=NumpyDatasetDType(mixed.dtype),
        work_dir=str(scratch / "data"),
    ).build()
    return NumpyDataLoaderConfig(
        global_batch_size=recipe.batch_tokens,
        seed=recipe.seed,
        num_threads=0,
        work_dir=str(scratch / "data"),
        target_device_type=device,
    ).build(dataset)


def build_trainer(
    module: TransformerTrainModule, loader: NumpyDataLoaderBase, *, scratch: Path, device: str, callbacks: Mapping[str, Callback]
) -> Trainer:
    """A trainer for one pass over the loader, which goes on from its last state in `scratch` if there is one."""
    from olmo_core.train import Duration, TrainerConfig

    config = TrainerConfig(
        save_folder=str(scratch / "states"),
        save_overwrite=True,
        device=device,
        max_duration=Duration.epochs(1),
        metrics_collect_interval=COLLECT_STEPS,
        cancel_check_interval=COLLECT_STEPS,
        callbacks=dict(callbacks),
    )
    return config.build(module, loader)


def model_weights(module: TransformerTrainModule) -> dict[str, Any]:
    """The model's parameters by OLMo-core's names."""
    return dict(module.model.state_dict())
