"""Every family through the same functions: rewind and its limits, checkpoints on disk, spectra and orders of the heads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cpt_lab.architecture import ATTENTION_ROLES, num_blocks, role_slices
from cpt_lab.checkpoints import in_folder
from cpt_lab.interventions import Rewind
from cpt_lab.orderings import build_ranking, ranking
from cpt_lab.patch import LiveModel, apply
from cpt_lab.specs import Head, Heads, ModelShape, Spectra
from cpt_lab.spectra.blocks import WHOLE
from cpt_lab.weights import open_weights, save_checkpoint
from factory import each_family, folder_spec, tiny_checkpoint, tiny_model, tiny_shapes, workspace
from spectral_tables import built, product

SHAPES = tiny_shapes(kv_heads=(4, 2))
PLAIN = [shape for shape in SHAPES if not re.search("[+-]", shape.family) and shape.num_kv_heads == shape.num_heads]
ATTENTION = re.compile(r"\.(self_attn|attn|attention)\.")
OF_NO_HEAD = re.compile(r"(o_proj|attn\.c_proj|dense)\.bias$")


def name(shape: ModelShape) -> str:
    return f"{shape.family}-{shape.num_heads}of{shape.num_kv_heads}"


def size(shape: ModelShape) -> str:
    return name(shape) + ("-tied" if shape.tied_embeddings else "")


def all_heads(shape: ModelShape) -> tuple[Head, ...]:
    return tuple((layer, head) for layer in range(shape.num_layers) for head in range(shape.num_heads))


def rewind(shape: ModelShape, heads: tuple[Head, ...]) -> Rewind:
    return Rewind(base=folder_spec(Path("base"), shape), select=Heads(heads=heads))


def pair(shape: ModelShape, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    models = (tiny_model(shape, seed=seed, dtype=dtype) for seed in (0, 1))
    tuned, base = ({one: tensor.detach() for one, tensor in model.named_parameters()} for model in models)
    return tuned, base


def saved(shape: ModelShape, folder: Path, **settings: Any) -> Path:
    return tiny_checkpoint(folder, family=shape.family, num_kv_heads=shape.num_kv_heads, **settings)


def logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        found: Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.arange(2, 14).unsqueeze(0)).logits
    return found


# -------------------------------------------------------------------------------------------------------------- rewind


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_rewinding_no_head_is_tuned_bit_for_bit(shape: ModelShape) -> None:
    tuned, base = pair(shape)
    patched = apply(rewind(shape, ()).patch(shape), tuned, {"base": base})
    assert all(torch.equal(patched[parameter], tuned[parameter]) for parameter in tuned)


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_rewinding_every_head_gives_the_base_attention_and_the_rest_of_tuned(shape: ModelShape) -> None:
    tuned, base = pair(shape)
    patched = apply(rewind(shape, all_heads(shape)).patch(shape), tuned, {"base": base})
    for parameter in tuned:
        of_no_head = OF_NO_HEAD.search(parameter) or (shape.family.startswith("qwen3") and parameter.endswith("_norm.weight"))
        expected = base if ATTENTION.search(parameter) and not of_no_head else tuned
        assert torch.equal(patched[parameter], expected[parameter]), parameter
        assert not torch.equal(tuned[parameter], base[parameter]), parameter


def own_blocks(parameters: dict[str, Tensor], shape: ModelShape, layer: int) -> Iterator[tuple[int, Tensor]]:
    """(query head, its share) of q and o of a layer, found by reshaping rather than by slices."""
    named = {parameter: tensor for parameter, tensor in parameters.items() if f".{layer}." in parameter and ATTENTION.search(parameter)}
    heads, width = shape.num_heads, shape.head_dim
    for parameter, tensor in named.items():
        if re.search(r"(q_proj\.|c_attn\.|qkv_proj\.|query_key_value\.)", parameter):
            out_by_in = tensor.t() if parameter.endswith("c_attn.weight") else tensor
            if "query_key_value" in parameter:
                own = out_by_in.unflatten(0, (heads, 3, width))[:, 0]
            else:
                own = out_by_in[: heads * width].unflatten(0, (heads, width))
            yield from enumerate(own)
        elif re.search(r"(o_proj|attn\.c_proj|dense)\.weight", parameter):
            in_by_out = tensor if parameter.endswith("c_proj.weight") else tensor.t()
            yield from enumerate(in_by_out.unflatten(0, (heads, width)))


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_rewinding_one_head_takes_its_q_and_o_from_base_and_no_other_heads(shape: ModelShape) -> None:
    tuned, base = pair(shape)
    patched = dict(apply(rewind(shape, ((1, 2),)).patch(shape), tuned, {"base": base}))
    for layer in range(shape.num_layers):
        found = zip(own_blocks(patched, shape, layer), own_blocks(base, shape, layer), own_blocks(tuned, shape, layer), strict=True)
        seen = [(head, new, old if (layer, head) == (1, 2) else own) for (head, new), (_, old), (_, own) in found]
        assert {head for head, *_ in seen} == set(range(shape.num_heads))
        assert all(torch.equal(new, expected) for _, new, expected in seen)


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_a_live_model_takes_the_patch_and_gives_every_bit_back(shape: ModelShape) -> None:
    tuned, base = pair(shape)
    model = LiveModel(tiny_model(shape), tuned, {"base": base})
    patch = rewind(shape, ((0, 1), (1, 2), (1, 3))).patch(shape)
    model.set(patch)
    live = dict(model.model.named_parameters())
    assert all(torch.equal(live[parameter], tensor) for parameter, tensor in apply(patch, tuned, {"base": base}).items())
    model.reset()
    assert all(torch.equal(live[parameter], tuned[parameter]) for parameter in tuned)


@pytest.mark.parametrize("shape", [*SHAPES, *(shape.but(tied_embeddings=True) for shape in PLAIN)], ids=size)
def test_the_parameters_of_a_shape_are_those_of_its_model(shape: ModelShape) -> None:
    assert shape.parameters == sum(parameter.numel() for parameter in tiny_model(shape).parameters())


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_the_parameters_on_disk_have_the_names_of_the_model_in_memory(shape: ModelShape, tmp_path: Path) -> None:
    weights = open_weights(saved(shape, tmp_path))
    expected = dict(tiny_model(shape).named_parameters())
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[parameter], expected[parameter]) for parameter in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", each_family(PLAIN), ids=name)
def test_a_copy_loads_with_the_logits_and_the_files_of_its_source(
    shape: ModelShape, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    like = saved(shape, tmp_path / "like", tied=tied, dtype=dtype, shard_size="30KB")
    save_checkpoint(open_weights(like), like, tmp_path / "out")
    files = sorted(path.name for path in like.iterdir())
    assert len(files) > 4
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert all((like / file).read_bytes() == (tmp_path / "out" / file).read_bytes() for file in files)
    assert torch.equal(logits(tmp_path / "out"), logits(like))


@pytest.mark.parametrize("shape", each_family(PLAIN), ids=name)
def test_a_rewound_checkpoint_loads_with_the_logits_of_the_patched_model(shape: ModelShape, tmp_path: Path) -> None:
    like, base = (saved(shape, tmp_path / part, seed=seed, shard_size="30KB") for seed, part in enumerate(["tuned", "base"]))
    patch = rewind(shape, ((0, 0), (1, 3))).patch(shape)
    save_checkpoint(apply(patch, open_weights(like), {"base": open_weights(base)}), like, tmp_path / "out")
    live = LiveModel(tiny_model(shape), like, {"base": base})
    live.set(patch)
    with torch.no_grad():
        expected = live.model(torch.arange(2, 14).unsqueeze(0)).logits
    assert torch.equal(logits(tmp_path / "out"), expected)
    assert not torch.equal(expected, logits(like))


def as_released(folder: Path, family: str) -> None:
    """Rewrite a checkpoint the way the family's releases name it: GPT-2 without its prefix, both GPTs with their masks."""
    tensors = load_file(folder / "model.safetensors")
    if family == "gpt2":
        tensors = {parameter.removeprefix("transformer."): tensor for parameter, tensor in tensors.items()}
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8).tril() for layer in range(2)}
    else:
        masks = {f"gpt_neox.layers.{layer}.attention.bias": torch.ones(1, 1, 8, 8).tril().bool() for layer in range(2)}
        masks |= {f"gpt_neox.layers.{layer}.attention.masked_bias": torch.tensor(-1e9) for layer in range(2)}
        masks |= {f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq": torch.ones(2) for layer in range(2)}
    save_file(tensors | masks, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_checkpoint_as_released_has_the_same_parameters_and_keeps_its_names_and_masks(family: str, tmp_path: Path) -> None:
    like = tiny_checkpoint(tmp_path / "like", family=family, tied=family == "gpt2")
    plain = dict(open_weights(like))
    before = logits(like)
    as_released(like, family)
    weights = open_weights(like)
    assert set(weights) == set(plain)
    assert all(torch.equal(weights[parameter], plain[parameter]) for parameter in plain)
    assert torch.equal(logits(like), before)
    save_checkpoint(weights, like, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (like / "model.safetensors").read_bytes()


# ---------------------------------------------------------------------------------------------------- spectra, orders


def delta_norms(tuned: dict[str, Tensor], base: dict[str, Tensor], shape: ModelShape) -> np.ndarray[Any, Any]:
    """||tuned - base||_F of q and o of every query head, entry by entry."""
    squares = np.zeros((shape.num_layers, shape.num_heads))
    for layer in range(shape.num_layers):
        for (head, new), (_, old) in zip(own_blocks(tuned, shape, layer), own_blocks(base, shape, layer), strict=True):
            if new.ndim == 2:
                squares[layer, head] += float(((new.double().numpy() - old.double().numpy()) ** 2).sum())
    return np.sqrt(squares)


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_tables_and_orders_of_the_heads_are_those_of_plain_loops(shape: ModelShape, tmp_path: Path) -> None:
    folders = [saved(shape, tmp_path / part, seed=seed) for seed, part in enumerate(["tuned", "base"])]
    tuned, base = (in_folder(folder) for folder in folders)
    ranked = ranking("delta_norm", "descending", tuned=tuned, base=base, roles=("q", "o"))
    order = workspace(tmp_path / "order")
    build_ranking(ranked, [product(ranked.spectra[0], tmp_path / "results")], order)
    scores = pd.read_parquet(order.product / "scores.parquet")["score"].to_numpy().reshape(shape.num_layers, shape.num_heads)
    expected = delta_norms(*pair(shape), shape)
    np.testing.assert_allclose(scores, expected, rtol=1e-10)
    best = np.unravel_index(expected.argmax(), expected.shape)
    assert json.loads((order.product / "ranking.json").read_text())["order"][0] == [int(index) for index in best]


@pytest.mark.parametrize("shape", each_family(SHAPES), ids=name)
def test_the_heads_of_a_role_are_together_the_whole_matrix(shape: ModelShape, tmp_path: Path) -> None:
    folder = saved(shape, tmp_path / "model")
    table = built(Spectra(checkpoint=in_folder(folder), measures=("frobenius_norm",)), tmp_path / "results")
    parameters = dict(tiny_model(shape).named_parameters())
    for layer in range(shape.num_layers):
        for role in table["role"].unique():
            rows = table[(table["layer"] == layer) & (table["role"] == role)]
            whole = rows.loc[rows["head"] == WHOLE, "frobenius_norm"].item()
            parts = [part for part in role_slices(shape, layer, role) if parameters[part.parameter].ndim == 2]
            blocks = (parameters[part.parameter].narrow(part.axis, part.start, part.stop - part.start) for part in parts)
            assert whole**2 == pytest.approx(sum(float(block.detach().double().square().sum()) for block in blocks))
            heads = rows.loc[rows["head"] != WHOLE, "frobenius_norm"]
            assert len(heads) == (num_blocks(shape, role) if role in ATTENTION_ROLES else 0)
            assert not len(heads) or (heads**2).sum() == pytest.approx(whole**2)
