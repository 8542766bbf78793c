"""Weights in and out: folders in Hugging Face format, weights on the way, and OLMo-core's own checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_lab.store import write_atomically

if TYPE_CHECKING:
    from olmo_core.nn.transformer import Transformer
    from olmo_core.train.train_module import TransformerTrainModule

    from cpt_lab.specs import Intermediate, ModelShape, OlmoCoreCheckpoint
    from cpt_lab.store import Workspace

INTERMEDIATES = "intermediates"  # of a run's product: one folder per number of tokens
ORIGINAL = "olmo_core"  # of an adopted checkpoint's product: a link to what OLMo-core wrote


def save_checkpoint(model: Transformer, shape: ModelShape, *, tokenizer: Path, folder: Path) -> None:
    """Write the model and its tokenizer as a folder that `AutoModelForCausalLM` and `AutoTokenizer` load; every rank calls it."""
    from olmo_core.distributed.utils import barrier, get_rank
    from olmo_core.nn.hf.checkpoint import save_hf_model
    from transformers import AutoTokenizer

    from cpt_lab.training import engine

    plain = engine.model_config(shape, seed=0).build(
        init_device="meta"
    )  # what trains may be wrapped, which OLMo-core does not look through
    save_hf_model(folder, model.state_dict(), plain, AutoTokenizer.from_pretrained(tokenizer), save_overwrite=True)
    if get_rank() == 0:
        for file in tokenizer.iterdir():
            if file.name != "manifest.json":
                shutil.copyfile(file, folder / file.name)
        # OLMo-core writes no context length, and asks for sampling where every evaluation of ours is greedy unless it says otherwise.
        rewrite(folder / "config.json", max_position_embeddings=shape.context)
        rewrite(folder / "generation_config.json", do_sample=False)
    barrier()


def save_intermediate(model: Transformer, shape: ModelShape, *, tokenizer: Path, scratch: Path, tokens: int) -> None:
    """`save_checkpoint` to its place among the run's intermediate ones, which holds whole folders only; every rank calls it."""
    from olmo_core.distributed.utils import barrier, get_rank

    folder = scratch / INTERMEDIATES / str(tokens)
    beside = folder.with_name(f".{tokens}")
    if folder.exists():
        return
    if get_rank() == 0:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    barrier()
    save_checkpoint(model, shape, tokenizer=tokenizer, folder=beside)
    if get_rank() == 0:
        os.replace(beside, folder)
    barrier()


def publish_intermediates(scratch: Path, product: Path) -> None:
    """Put the weights kept on the way into the product; as links, so that they are still here if its publication is cut short."""
    for folder in sorted((scratch / INTERMEDIATES).glob("[0-9]*")):
        shutil.copytree(folder, product / INTERMEDIATES / folder.name, copy_function=os.link)


def adopt_intermediate(spec: Intermediate, work: Workspace, run: Path) -> bool:
    """Links to the weights that a finished run kept after so many tokens; False if it did not keep them."""
    folder = run / INTERMEDIATES / str(spec.tokens)
    if not folder.is_dir():
        return False
    for path in sorted(folder.iterdir()):
        os.symlink(path.resolve(), work.product / path.name)
    return True


def take_intermediate(spec: Intermediate, work: Workspace) -> None:
    """The product of a run that was made up to these tokens for their sake."""
    for path in sorted((work.scratch / INTERMEDIATES / str(spec.tokens)).iterdir()):
        os.link(path, work.product / path.name)


def adopt_olmo_core(spec: OlmoCoreCheckpoint, work: Workspace, *, tokenizer: Path) -> None:
    """A checkpoint of OLMo-core as a Hugging Face folder, with a link to the original; ValueError if it is another one or does not fit."""
    from cpt_lab.checkpoints import olmo_core_folder
    from cpt_lab.training import engine

    folder, contents = olmo_core_folder(Path(spec.path))
    if contents != spec.contents_digest:
        raise ValueError(
            f"the checkpoint in {spec.path} changed since the study was planned: run the command again to plan with the new one"
        )
    model = engine.model_config(spec.shape, seed=0).build(init_device="cpu")
    load_olmo_core_weights(model, folder, name=spec.shape.name)
    save_checkpoint(model, spec.shape, tokenizer=tokenizer, folder=work.product)
    (work.product / ORIGINAL).symlink_to(folder)


def load_olmo_core_weights(model: Transformer, folder: Path, *, name: str) -> None:
    """Copy the weights of an OLMo-core checkpoint into a model on one device; ValueError naming the first parameter that does not fit."""
    from olmo_core.distributed.checkpoint import get_checkpoint_metadata, load_model_and_optim_state

    place = weights_folder(folder)
    stored = get_checkpoint_metadata(place).state_dict_metadata
    for parameter, tensor in model.state_dict().items():
        found = stored.get(f"model.{parameter}")
        size = None if found is None else tuple(found.size)
        if size != tuple(tensor.shape):
            has = "lacks it" if size is None else f"has it with shape {size}"
            raise ValueError(f"model {name} has a {parameter} of shape {tuple(tensor.shape)} and {folder} {has}: choose the model it is of")
    with alone():
        load_model_and_optim_state(place, model)


def load_olmo_core_state(module: TransformerTrainModule, folder: Path, *, scratch: Path) -> None:
    """Weights of an OLMo-core checkpoint and, if it has them, the optimizer's moments; rates and decays stay what the recipe says."""
    from olmo_core.train.checkpoint import Checkpointer

    assert module.optim is not None
    ours = [{name: value for name, value in group.items() if name != "params"} for group in module.optim.param_groups]
    with alone():
        Checkpointer(work_dir=scratch).load(folder, module, load_trainer_state=False)
    for group, settings in zip(module.optim.param_groups, ours, strict=True):
        group.update(settings)


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block torch does not warn that there is one process only: that is what we want."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def weights_folder(folder: Path) -> Path:
    """Where a checkpoint of OLMo-core's trainer, or of its weights alone, has its tensors."""
    inside = folder / "model_and_optim"
    return inside if inside.is_dir() else folder


def rewrite(path: Path, **fields: Any) -> None:
    """Set fields of a JSON object on disk."""
    write_atomically(path, json.dumps(json.loads(path.read_text()) | fields, indent=2, sort_keys=True) + "\n")
