"""Our specs in OLMo-core's terms: model, optimiser, schedule, data loader and trainer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.training import memory
from cpt_lab.training.ranks import Team

if TYPE_CHECKING:
    from olmo_core.data import NumpyDataLoaderBase
    from olmo_core.nn.transformer import Transformer, TransformerConfig
    from olmo_core.optim.scheduler import Scheduler
    from olmo_core.train import Trainer
    from olmo_core.train.callbacks import Callback
    from olmo_core.train.train_module import TransformerTrainModule
    from olmo_core.train.train_module.transformer import TransformerActivationCheckpointingConfig, TransformerDataParallelConfig

    from cpt_lab.execution import Execution
    from cpt_lab.specs import ModelShape, Recipe
    from cpt_lab.training.mixing import Mixed

COLLECT_STEPS = 5  # metrics are fetched from the device so often
HYBRID_SHARE = 0.5  # of a GPU's memory that states may take for replicas of one node each: else they are spread over all nodes


def model_config(shape: ModelShape, *, seed: int, fused_loss: bool = False) -> TransformerConfig:
    """OLMo 2 of this shape: norms after attention and MLP, RMS norm over the whole q and k projections, SwiGLU, no biases.

    ValueError for another family, or for heads that do not fill the hidden size, which OLMo 2's released configuration cannot express.
    """
    from olmo_core.nn.feed_forward import FeedForwardConfig
    from olmo_core.nn.lm_head import LMLossImplementation
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig

    if shape.family != "olmo2":
        raise ValueError(f"model {shape.name} is of family {shape.family}, but only olmo2 can be trained: choose a model of that family")
    if shape.num_heads * shape.head_dim != shape.hidden_size:
        raise ValueError(
            f"model {shape.name} has {shape.num_heads} heads of {shape.head_dim}, but hidden_size {shape.hidden_size}: "
            "an OLMo 2 needs num_heads x head_dim = hidden_size"
        )
    config = TransformerConfig.llama_like(
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
    if fused_loss:
        config.lm_head.loss_implementation = LMLossImplementation.fused_linear
    return config


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


def build_train_module(
    shape: ModelShape, recipe: Recipe, *, start: Path | None, device: str, how: Execution, scratch: Path | None = None
) -> TransformerTrainModule:
    """The model, with random weights drawn from `recipe.seed` or with those of the checkpoint folder `start`, ready to train.

    AdamW without weight decay on embeddings (P appendix B.2), schedule, z-loss, clipping and precision as the recipe says; moments are
    those of `start` if OLMo-core wrote it with some, else zero. Spread over all ranks if this is one of several. ValueError if the
    micro-batch does not divide a rank's share of the batch, or if the start does not fit the shape.
    """
    import torch
    from olmo_core.config import DType
    from olmo_core.distributed.utils import get_local_world_size, get_world_size
    from olmo_core.optim import AdamWConfig, OptimGroupOverride
    from olmo_core.train.train_module import TransformerTrainModuleConfig

    from cpt_lab.training import saving

    fused, several = with_fused_loss(how, device), get_world_size() > 1
    ranks = Team(get_world_size() // get_local_world_size(), get_local_world_size())
    sequences = micro_batch(shape, recipe, ranks=ranks, device=device, how=how)
    optimiser = AdamWConfig(
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=True,
        group_overrides=[OptimGroupOverride(params=["embeddings.weight"], opts={"weight_decay": 0.0})],
    )
    model = model_config(shape, seed=recipe.seed, fused_loss=fused).build(init_device="meta" if several else "cpu")
    module = TransformerTrainModuleConfig(
        rank_microbatch_size=sequences * recipe.sequence_length,
        max_sequence_length=recipe.sequence_length,
        optim=optimiser,
        max_grad_norm=recipe.max_grad_norm,
        scheduler=schedule(recipe),
        z_loss_multiplier=recipe.z_loss or None,
        compile_model=how.compile and device == "cuda",
        ac_config=recomputed(how),
        dp_config=sharding(shape, recipe, device=device) if several else None,
        autocast_precision=DType.bfloat16 if recipe.precision == "bf16" and not several else None,
    ).build(model, device=torch.device(device))
    if start is None:
        return module
    if (start / saving.ORIGINAL).exists():  # only now: the train module draws the weights anew
        saving.load_olmo_core_state(module, (start / saving.ORIGINAL).resolve(), scratch=scratch or start)
    else:
        load_start(module.model, start)
    return module


def micro_batch(shape: ModelShape, recipe: Recipe, *, ranks: Team, device: str, how: Execution) -> int:
    """Sequences that a rank computes at a time: what `how` says, else what its GPU holds; on a CPU its whole share of a batch.

    Fewer after memory ran out. ValueError if the number does not divide the share.
    """
    share, asked = recipe.batch_sequences // ranks.size, how.micro_batch_sequences
    if asked is None and device == "cuda":
        import torch

        total = int(torch.cuda.mem_get_info()[1])
        fused = with_fused_loss(how, device)
        asked = memory.sequences_that_fit(
            shape, recipe, share=share, total=total, sharded=ranks.each, checkpointing=how.activation_checkpointing, fused_loss=fused
        )
    sequences = asked or share
    if share % sequences:
        of = f"a batch of {share}" if ranks.size == 1 else f"a rank's share of {share} of the batch"
        raise ValueError(f"micro-batches of {sequences} sequences do not divide {of}: choose a divisor of training.batch_sequences")
    return next(rows for rows in range(how.rows(sequences), 0, -1) if share % rows == 0)


def sharding(shape: ModelShape, recipe: Recipe, *, device: str) -> TransformerDataParallelConfig:
    """FSDP2: float32 weights and moments in shards, computed with in the recipe's precision, gradients added up in float32.

    Over several nodes a replica per node (HSDP), unless half a GPU's memory is too little for its shard.
    """
    from olmo_core.config import DType
    from olmo_core.distributed.parallel import DataParallelType
    from olmo_core.distributed.utils import get_local_world_size, get_world_size
    from olmo_core.train.train_module.transformer import TransformerDataParallelConfig

    nodes = get_world_size() // get_local_world_size()
    hybrid = nodes > 1 and _fits_a_node(shape, get_local_world_size(), device)
    return TransformerDataParallelConfig(
        name=DataParallelType.hsdp if hybrid else DataParallelType.fsdp,
        num_replicas=nodes if hybrid else None,
        param_dtype=DType.bfloat16 if recipe.precision == "bf16" else None,
        reduce_dtype=DType.float32,
    )


def _fits_a_node(shape: ModelShape, ranks: int, device: str) -> bool:
    import torch

    if device != "cuda":
        return True
    total = int(torch.cuda.mem_get_info()[1])
    return memory.STATE_BYTES * shape.parameters / ranks <= HYBRID_SHARE * total


def recomputed(how: Execution) -> TransformerActivationCheckpointingConfig | None:
    """Which layers' activations are computed again in the backward pass."""
    from olmo_core.nn.transformer import TransformerActivationCheckpointingMode as Mode
    from olmo_core.train.train_module.transformer import TransformerActivationCheckpointingConfig

    if how.activation_checkpointing == "none":
        return None
    if how.activation_checkpointing == "half":
        return TransformerActivationCheckpointingConfig(mode=Mode.selected_blocks, block_interval=2)
    return TransformerActivationCheckpointingConfig(mode=Mode.full)


def with_fused_loss(how: Execution, device: str) -> bool:
    """Whether logits and loss are one kernel of liger-kernel; ValueError if that is asked for and cannot be."""
    possible = device == "cuda" and find_spec("liger_kernel") is not None
    if how.fused_loss == "on" and not possible:
        raise ValueError("execution.fused_loss=on needs a GPU and liger-kernel: `pip install liger-kernel`, or fused_loss=auto")
    return possible and how.fused_loss != "off"


def schedule(recipe: Recipe) -> Scheduler:
    """Linear warm-up over `warmup_tokens`, then cosine or linear to `lr_final_share` of the peak at the last token."""
    from olmo_core.optim import CosWithWarmup, LinearWithWarmup
    from olmo_core.optim.scheduler import SchedulerUnits

    kind = CosWithWarmup if recipe.schedule == "cosine" else LinearWithWarmup
    return kind(units=SchedulerUnits.tokens, warmup=recipe.warmup_tokens, alpha_f=recipe.lr_final_share)


def build_loader(mixed: Mixed, recipe: Recipe, *, scratch: Path, device: str, dp_group: Any = None) -> NumpyDataLoaderBase:
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
    ).build(dataset, dp_process_group=dp_group)


def build_trainer(
    module: TransformerTrainModule,
    loader: NumpyDataLoaderBase,
    *,
    scratch: Path,
    device: str,
    callbacks: Mapping[str, Callback],
    last_step: int | None = None,
) -> Trainer:
    """A trainer for one pass over the loader, or the beginning of one, which goes on from its last state in `scratch` if there is one."""
    from olmo_core.train import Duration, TrainerConfig

    config = TrainerConfig(
        save_folder=str(scratch / "states"),
        save_overwrite=True,
        device=device,
        max_duration=Duration.epochs(1),
        hard_stop=None if last_step is None else Duration.steps(last_step),
        metrics_collect_interval=COLLECT_STEPS,
        cancel_check_interval=COLLECT_STEPS,
        callbacks=dict(callbacks),
    )
    return config.build(module, loader)


def model_weights(module: TransformerTrainModule) -> dict[str, Any]:
    """The model's parameters by OLMo-core's names."""
    return dict(module.model.state_dict())
