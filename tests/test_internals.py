"""Inside a model: attention entropy and similarity of layers, their limits, and parity with plain loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluation_cases as cases
from cpt_lab.execution import Execution
from cpt_lab.families import family
from cpt_lab.internals.observe import attention_entropies, layer_means
from cpt_lab.internals.similarity import binned, bounds, entropy, gram, linear_cka
from cpt_lab.internals.tables import build_entropy, build_maps, build_similarity
from cpt_lab.interventions import PruneLayers, Rewind
from cpt_lab.interventions.prune_layers import Layers
from cpt_lab.specs import AttentionEntropy, AttentionMaps, Heads, LayerSimilarity, Patched, Prompts, key
from factory import folder_spec, tiny_checkpoint, tiny_model, tiny_shape, tiny_shapes, workspace

FAMILIES = [shape for shape in tiny_shapes(kv_heads=(4, 2)) if "+" not in shape.family and "-" not in shape.family]
IDS = torch.tensor([5, 17, 80, 3, 44, 9, 9, 120])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layers_of(name: str) -> str:
    row = family(name)
    return (row.prefix + row.layer).split(".{layer}")[0]


# ------------------------------------------------------------------------------------------------------------ mathematics


def test_even_attention_has_the_entropy_of_its_length_and_a_single_place_has_none() -> None:
    assert float(entropy(torch.full((7,), 1 / 7))) == pytest.approx(math.log(7))
    assert float(entropy(torch.tensor([0.0, 1.0, 0.0]))) == 0


def test_features_are_wholly_like_themselves_and_like_their_rotations_multiples_and_shifts() -> None:
    features, rotation = random(20, 6), torch.linalg.qr(random(6, 6, seed=1)).Q
    moved = 3 * features @ rotation + 5
    assert float(linear_cka(gram(features), gram(moved))) == pytest.approx(1)


def test_features_in_orthogonal_directions_of_the_examples_are_not_alike() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(12, 1, dtype=torch.float64), random(12, 6)], dim=1)).Q[:, 1:]
    assert float(linear_cka(gram(basis[:, :3]), gram(basis[:, 3:]))) == pytest.approx(0, abs=1e-12)


def test_features_that_do_not_vary_have_no_similarity() -> None:
    assert math.isnan(float(linear_cka(gram(torch.ones(5, 3)), gram(random(5, 3)))))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(3, 30), one=st.integers(1, 8), other=st.integers(1, 8))
def test_cka_equals_the_formula_over_cross_covariances(seed: int, count: int, one: int, other: int) -> None:
    left, right = random(count, one, seed=seed).numpy(), random(count, other, seed=seed + 1).numpy()
    centred = [part - part.mean(axis=0) for part in (left, right)]
    cross = np.linalg.norm(centred[1].T @ centred[0]) ** 2
    norms = np.linalg.norm(centred[0].T @ centred[0]) * np.linalg.norm(centred[1].T @ centred[1])
    found = float(linear_cka(gram(torch.from_numpy(left)), gram(torch.from_numpy(right))))
    assert found == pytest.approx(cross / norms, rel=1e-9)
    assert -1e-12 <= found <= 1 + 1e-12


# --------------------------------------------------------------------------------------------------------------- watching


@pytest.mark.parametrize("shape", FAMILIES, ids=lambda shape: f"{shape.family}-{shape.num_heads}of{shape.num_kv_heads}")
def test_entropies_and_means_are_those_of_what_the_model_itself_gives_out(shape: Any) -> None:
    model = tiny_model(shape)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=IDS[None], output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        before = model(input_ids=IDS[None], output_hidden_states=True)  # Gemma 2 has no soft cap in this form of attention
    found = attention_entropies(model, layers_of(shape.family), IDS)
    means = layer_means(model, layers_of(shape.family), IDS)
    for layer, (weights,) in enumerate(output.attentions):
        for head, rows in enumerate(weights.double().numpy()):
            by_hand = [-sum(p * math.log(p) for p in row if p > 0) for row in rows]
            assert float(found.last[layer, head]) == pytest.approx(by_hand[-1], abs=1e-6)
            assert float(found.mean[layer, head]) == pytest.approx(np.mean(by_hand), abs=1e-6)
    for layer in range(shape.num_layers - 1):  # transformers gives the last one after the final norm
        expected = before.hidden_states[layer + 1][0].mean(0)
        torch.testing.assert_close(means[layer], expected, rtol=1e-4, atol=1e-5)
    assert means.shape == (shape.num_layers, shape.hidden_size)
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(input_ids=IDS[None]).logits, before.logits, rtol=0, atol=0)


def test_the_first_token_attends_to_itself_alone() -> None:
    shape = tiny_shape()
    found = attention_entropies(tiny_model(shape), layers_of(shape.family), IDS[:1])
    assert float(found.last.abs().max()) == 0
    assert torch.equal(found.last, found.mean)


def test_queries_of_zero_attend_evenly_to_all_that_was_read() -> None:
    shape = tiny_shape("llama")
    model = tiny_model(shape)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.zero_()
    found = attention_entropies(model, layers_of(shape.family), IDS)
    assert found.last[1].tolist() == pytest.approx([math.log(len(IDS))] * 4)
    assert found.mean[1].tolist() == pytest.approx([np.log(np.arange(1, len(IDS) + 1)).mean()] * 4)


# ----------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A taught model, another one, and a built protocol, by spec key."""
    root = tmp_path_factory.mktemp("internals")
    asked = cases.protocol()
    products = {key(asked): cases.build(asked, root)}
    specs = {}
    for seed, name in enumerate(("tuned", "base")):
        folder = tiny_checkpoint(root / name, seed=seed, tokenizer=True)
        specs[name] = folder_spec(folder, tiny_shape())
        products[key(specs[name])] = folder
    return {"protocol": asked, "products": products, **specs}


def entropies_of(checkpoint: Any, scene: dict[str, Any], folder: Path, **changes: Any) -> pd.DataFrame:
    spec = AttentionEntropy(checkpoint=checkpoint, prompts=Prompts(**{"protocol": scene["protocol"], "count": 3, **changes}))
    work = workspace(folder)
    build_entropy(spec, work, product=lambda need: scene["products"][key(need)], how=Execution(device="cpu"))
    return pd.read_parquet(work.product / "table.parquet")


def maps_of(checkpoint: Any, scene: dict[str, Any], folder: Path, *, count: int = 1, **changes: Any) -> pd.DataFrame:
    spec = AttentionMaps(checkpoint=checkpoint, prompts=Prompts(protocol=scene["protocol"], count=count), **changes)
    work = workspace(folder)
    build_maps(spec, work, product=lambda need: scene["products"][key(need)], how=Execution(device="cpu"))
    return pd.read_parquet(work.product / "table.parquet")


def similarity_of(checkpoint: Any, against: Any, scene: dict[str, Any], folder: Path) -> pd.DataFrame:
    prompts = Prompts(protocol=scene["protocol"], count=4)
    spec = LayerSimilarity(checkpoint=checkpoint, against=against, prompts=prompts)
    work = workspace(folder)
    build_similarity(spec, work, product=lambda need: scene["products"][key(need)], how=Execution(device="cpu"))
    return pd.read_parquet(work.product / "table.parquet")


def rewound(scene: dict[str, Any], *heads: tuple[int, int]) -> Patched:
    return Patched(tuned=scene["tuned"], interventions=(Rewind(base=scene["base"], select=Heads(heads=heads)),))


def test_a_table_of_entropies_has_a_row_for_every_head_and_prompt(scene: dict[str, Any], tmp_path: Path) -> None:
    table = entropies_of(scene["tuned"], scene, tmp_path / "work")
    assert len(table) == 2 * 4 * 3 == len(table.drop_duplicates(["layer", "head", "prompt"]))
    assert (table.entropy >= 0).all()
    assert (table.entropy <= np.log(table.tokens) + 1e-9).all()


def test_edits_of_late_layers_change_entropies_there_alone(scene: dict[str, Any], tmp_path: Path) -> None:
    own = entropies_of(scene["tuned"], scene, tmp_path / "own").set_index(["layer", "head", "prompt"])
    edited = entropies_of(rewound(scene, (1, 2)), scene, tmp_path / "edited").set_index(["layer", "head", "prompt"])
    changed = (own.entropy != edited.entropy).groupby("layer").any()  # OLMo 2 norms the queries of all heads together
    assert changed.tolist() == [False, True]


def test_attention_of_more_tokens_than_cells_shares_rows_and_columns_and_still_adds_up_to_one() -> None:
    weights = torch.softmax(random(7, 7).masked_fill(torch.ones(7, 7).triu(1) > 0, -torch.inf), dim=-1)
    assert bounds(7, 3) == [0, 2, 5, 7]
    found = binned(weights, 3)
    assert found.sum(1).tolist() == pytest.approx([1, 1, 1])
    assert float(found[1, 0]) == pytest.approx(float(weights[2:5, :2].sum(1).mean()))
    assert torch.equal(binned(weights, 9), weights)


def test_maps_of_attention_are_of_the_chosen_layers_heads_and_prompt(scene: dict[str, Any], tmp_path: Path) -> None:
    entropies = entropies_of(scene["tuned"], scene, tmp_path / "entropies").set_index(["prompt", "layer", "head"])
    maps = maps_of(scene["tuned"], scene, tmp_path / "maps", layers=(1,), heads=(0, 2), count=2)
    assert sorted(maps.groupby(["layer", "head"]).groups) == [(1, -1), (1, 0), (1, 2)]
    last = maps[(maps["head"] == 2) & (maps["row"] == maps["row"].max())]["weight"].to_numpy(np.float64)
    assert -(last * np.log(last)).sum() == pytest.approx(entropies.loc[(1, 1, 2), "entropy"], rel=1e-5)


def test_a_layer_that_was_pruned_away_has_no_map(scene: dict[str, Any], tmp_path: Path) -> None:
    pruned = Patched(tuned=scene["tuned"], interventions=(PruneLayers(select=Layers(layers=(0,))),))
    with pytest.raises(ValueError, match="no layer 1 in the edited model, which has 1"):
        maps_of(pruned, scene, tmp_path / "maps")


def test_every_layer_is_wholly_like_itself(scene: dict[str, Any], tmp_path: Path) -> None:
    table = similarity_of(scene["tuned"], scene["tuned"], scene, tmp_path / "work").set_index(["layer", "against_layer"]).cka
    assert [table[layer, layer] for layer in range(2)] == pytest.approx([1, 1])
    assert table[0, 1] == pytest.approx(table[1, 0])
    assert table[0, 1] < 1


def test_a_pruned_model_has_fewer_layers_to_compare(scene: dict[str, Any], tmp_path: Path) -> None:
    pruned = Patched(tuned=scene["tuned"], interventions=(PruneLayers(select=Layers(layers=(0,))),))
    table = similarity_of(pruned, scene["tuned"], scene, tmp_path / "work")
    assert table[["layer", "against_layer"]].to_numpy().tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 9}, "9 prompts are wanted and task sums has 4: lower internals.prompts"),
        ({"task": "sum"}, "unknown task of protocol case 'sum'"),
    ],
)
def test_prompts_that_cannot_be_had_are_refused(scene: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropies_of(scene["tuned"], scene, tmp_path / "work", **changes)
