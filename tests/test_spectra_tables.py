"""Tables of spectra: every column against plain loops, what rows there are, what is computed again and what is not, and bad input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import spectral_oracles as oracles
from cpt_lab.execution import Execution
from cpt_lab.specs import FolderCheckpoint, ModelShape, Spectra, SpectralPart, key
from cpt_lab.spectra import MEASURES, NAMES, PAIR_FAMILIES, decompose
from cpt_lab.spectra.blocks import WHOLE, block_seeds
from cpt_lab.spectra.choice import chosen
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.parts import Opened, decomposed
from cpt_lab.store import Store
from factory import tiny_shape, workspace
from long_tables import rest_slow
from spectral_cases import BY_HAND, arrays, blocks, checkpoints, title, wholes
from spectral_tables import built, pair, product, saved

OLMO2, GQA = tiny_shape(), tiny_shape("llama", num_kv_heads=2)
EVERY = chosen("all", pair=True)
EPS = float(torch.finfo(torch.float32).eps)
PLACE = ["checkpoint", "against", "layer", "role", "head"]

Key = tuple[int, str, int]
Blocks = dict[Key, oracles.Array]


@pytest.fixture(scope="module")
def olmo2(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderCheckpoint, FolderCheckpoint, Path]:
    """Tuned, base and a store, shared by tests that do not mind what else lies there."""
    folder = tmp_path_factory.mktemp("olmo2")
    tuned, base = pair(OLMO2, folder)
    return tuned, base, folder / "results"


# ----------------------------------------------------------------------------------------------------------- the numbers


def by_hand(shape: ModelShape, name: str) -> Blocks:
    """Every block of a checkpoint as (residual, head), by layer, role and head."""
    weights, found = arrays(checkpoints(shape)[name]), {}
    per_layer = [*([role, head] for role, count in roles_and_heads(shape) for head in range(count))]
    for turn, (role, parameter, index) in enumerate(place for place in blocks(shape) if place[0] in "qkvo"):
        layer, within = divmod(turn, len(per_layer))
        assert role == per_layer[within][0]
        found[layer, role, per_layer[within][1]] = oriented(weights[parameter][index], shape, index)
    for layer in range(shape.num_layers):
        for role, parameter, index in wholes(shape, layer):
            found[layer, role, WHOLE] = oriented(weights[parameter][index], shape, index)
    return found


def roles_and_heads(shape: ModelShape) -> list[tuple[str, int]]:
    return [("q", shape.num_heads), ("k", shape.num_kv_heads), ("v", shape.num_kv_heads), ("o", shape.num_heads)]


def oriented(block: oracles.Array, shape: ModelShape, index: Any) -> oracles.Array:
    """Rows of the residual stream: an index of one axis takes rows of the heads, or of the MLP where they are as many."""
    of_heads = isinstance(index, tuple) and len(index) == 1
    return block.T if of_heads or (not isinstance(index, tuple) and block.shape[0] == shape.mlp_size) else block


def rms(block: oracles.Array) -> float:
    return math.sqrt(float((block**2).mean()))


def rows_of(table: pd.DataFrame) -> dict[Key, dict[str, float]]:
    rows = table.set_index(["layer", "role", "head"]).drop(columns=["checkpoint", "against"])
    return {(int(layer), str(role), int(head)): row for (layer, role, head), row in rows.to_dict(orient="index").items()}


def assert_rows(found: dict[Key, dict[str, float]], expected: dict[Key, dict[str, float]], *, rel: float = 1e-6) -> None:
    assert set(found) == set(expected)
    for place, row in expected.items():
        assert {name: found[place][name] for name in row} == pytest.approx(row, rel=rel, abs=1e-7, nan_ok=True), place


@pytest.mark.parametrize("shape", rest_slow([BY_HAND[0], *(shape.but(num_layers=1) for shape in BY_HAND[1:])], fast=2), ids=title)
def test_every_column_of_a_delta_and_a_pair_equals_plain_float64_loops(tmp_path: Path, shape: ModelShape) -> None:
    tuned, base = pair(shape, tmp_path)
    table = built(Spectra(checkpoint=tuned, against=base, measures=EVERY), tmp_path / "results")
    new, old = by_hand(shape, "tuned"), by_hand(shape, "base")
    expected = {
        place: oracles.weights_row(new[place] - old[place], EPS, math.hypot(rms(new[place]), rms(old[place])))
        | oracles.pair_row(new[place], old[place], EPS)
        for place in new
    }
    assert set(next(iter(expected.values()))) == set(EVERY)
    assert_rows(rows_of(table), expected)


def test_every_column_of_weights_equals_plain_loops_under_every_option(tmp_path: Path) -> None:
    checkpoint = saved(GQA, tmp_path / "tuned")
    options: dict[str, Any] = {"min_tail": 5, "ks": "two_sided", "null_model": "permute", "seed": 7}
    table = built(Spectra(checkpoint=checkpoint, measures=chosen("all", pair=False), **options), tmp_path / "results")
    expected = {}
    for (layer, role, head), block in by_hand(GQA, "tuned").items():
        (seed,) = block_seeds(7, layer, role, [head])  # type: ignore[arg-type]
        permuted = decompose.permuted(torch.from_numpy(block), seed).double().numpy()
        assert sorted(permuted.ravel()) == sorted(block.ravel())
        null = np.linalg.svd(permuted, compute_uv=False)
        expected[layer, role, head] = oracles.weights_row(block, EPS, rms(block), min_tail=5, two_sided=True, null=null)
    assert np.isfinite([row["pl_alpha"] for row in expected.values()]).all()
    assert_rows(rows_of(table), expected)


@pytest.mark.slow
def test_likelihood_ratios_of_whole_matrices_equal_numerical_optimisation(tmp_path: Path) -> None:
    checkpoint = saved(OLMO2, tmp_path / "tuned")
    spec = Spectra(checkpoint=checkpoint, measures=chosen("tails", pair=False), blocks="matrices", roles=("q", "up"), samples=3)
    found = rows_of(built(spec, tmp_path / "results"))
    blocks_of = by_hand(OLMO2, "tuned")
    assert len(found) == 4
    for place, row in found.items():
        values = np.linalg.svd(blocks_of[place], compute_uv=False)
        expected = oracles.tail_row([value**2 / max(blocks_of[place].shape) for value in values])
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-3), place
        assert row["pl_p_value"] in (pytest.approx(share / 3) for share in range(4))


def test_every_measure_has_its_function_and_every_function_its_name() -> None:
    assert {name: set(family.measures) for name, family in FAMILIES.items()} == {name: set(names) for name, names in MEASURES.items()}


# -------------------------------------------------------------------------------------------------------------- the rows


def test_a_table_says_what_it_is_of_and_has_its_measures_in_the_order_asked(olmo2: Any) -> None:
    tuned, base, results = olmo2
    asked = ("stable_rank", "agreement_head_max", "frobenius_norm")
    table = built(Spectra(checkpoint=tuned, against=base, measures=asked), results)
    assert list(table.columns) == [*PLACE, *asked]
    assert (set(table.checkpoint), set(table.against)) == ({key(tuned)}, {key(base)})
    alone = built(Spectra(checkpoint=tuned, measures=("stable_rank",)), results)
    assert alone.against.isna().all()


def test_rows_are_layer_by_layer_role_by_role_and_a_whole_matrix_comes_after_its_heads(tmp_path: Path) -> None:
    table = built(Spectra(checkpoint=saved(GQA, tmp_path / "one"), measures=("frobenius_norm",)), tmp_path / "results")
    heads = {"q": 4, "k": 2, "v": 2, "o": 4}
    layer = [(role, head) for role, count in heads.items() for head in (*range(count), WHOLE)]
    layer += [(role, WHOLE) for role in ("gate", "up", "down")]
    rows = list(zip(table["layer"], table["role"], table["head"], strict=True))
    assert rows == [(number, *row) for number in range(2) for row in layer]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"blocks": "heads"}, lambda table: table["head"] >= 0),
        ({"blocks": "matrices"}, lambda table: table["head"] < 0),
        ({"roles": ("q", "down")}, lambda table: table["role"].isin(["q", "down"])),
        ({"roles": ("o", "up"), "blocks": "heads"}, lambda table: (table["role"] == "o") & (table["head"] >= 0)),
    ],
)
def test_fewer_blocks_and_roles_are_rows_of_the_whole_table(olmo2: Any, options: dict[str, Any], kept: Any) -> None:
    tuned, base, results = olmo2
    spec = Spectra(checkpoint=tuned, against=base, measures=("frobenius_norm", "agreement_head_max"))
    every = built(spec, results)
    pd.testing.assert_frame_equal(built(spec.but(**options), results), every[kept(every)].reset_index(drop=True))


def test_the_delta_of_a_checkpoint_to_itself_has_zero_norms_and_its_vectors_agree(olmo2: Any) -> None:
    tuned, _, results = olmo2
    table = built(Spectra(checkpoint=tuned, against=tuned, measures=("frobenius_norm", "hard_rank", "agreement_head_max")), results)
    assert not table[["frobenius_norm", "hard_rank"]].to_numpy().any()
    assert table["agreement_head_max"].to_numpy() == pytest.approx(1)


def test_the_long_form_has_a_row_per_singular_value_in_float32(olmo2: Any) -> None:
    tuned, base, results = olmo2
    measures = ("spectral_norm", "mp_edge", "agreement_head_max")
    spec = Spectra(checkpoint=tuned, against=base, measures=measures, indices=True, null_model="permute", roles=("q", "up"))
    folder = product(spec, results)
    table, rows = pd.read_parquet(folder / "table.parquet"), pd.read_parquet(folder / "indices.parquet")
    agreements = [f"agreement_{side}_{kind}" for side in ("residual", "head") for kind in ("max", "diagonal")]
    assert list(rows.columns) == ["layer", "role", "head", "index", "singular_value", "null_value", "against_value", *agreements]
    assert set(rows.dtypes.iloc[4:]) == {np.dtype(np.float32)}
    assert len(rows) == 2 * (4 * 8 + 32 + 32)  # of two layers: heads of q, the whole of q, up
    groups = rows.groupby(["layer", "role", "head"], sort=False)
    places = table.set_index(["layer", "role", "head"])
    for column, statistic, measure in (("singular_value", "first", "spectral_norm"), (agreements[2], "mean", "agreement_head_max")):
        summary = groups[column].agg(statistic)
        assert list(summary.index) == list(places.index)
        assert summary.to_numpy() == pytest.approx(places[measure].to_numpy(), rel=1e-6)
    alone = built(Spectra(checkpoint=base, measures=("spectral_norm",), roles=("q", "up")), results)
    assert groups["against_value"].first().to_numpy() == pytest.approx(alone["spectral_norm"].to_numpy(), rel=1e-6)
    assert (groups["index"].apply(list) == groups["index"].size().map(lambda count: list(range(count)))).all()
    squares = (rows[["singular_value", "null_value"]].astype(float) ** 2).groupby([rows["layer"], rows["role"], rows["head"]]).sum()
    assert squares["null_value"].to_numpy() == pytest.approx(squares["singular_value"].to_numpy(), rel=1e-5)  # the same entries


def test_the_long_form_is_made_only_where_it_is_asked_for(olmo2: Any) -> None:
    tuned, _, results = olmo2
    spec = Spectra(checkpoint=tuned, measures=("stable_rank",), blocks="heads")
    assert [path.name for path in product(spec, results).iterdir()] == ["table.parquet"]
    rows = pd.read_parquet(product(spec.but(indices=True), results) / "indices.parquet")
    assert list(rows.columns) == ["layer", "role", "head", "index", "singular_value"]


# ------------------------------------------------------------------------------------------------------------- bad input


def test_values_that_are_not_finite_are_named_by_checkpoint_and_parameter(tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in checkpoints(OLMO2)["tuned"].items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 4:6] = float("nan")
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    part = SpectralPart(checkpoint=checkpoint, layer=1, scope="mlp", of="values")
    with pytest.raises(ValueError, match=r"mine has 2 values in model.layers.1.mlp.up_proj.weight"):
        decomposed(part, [Opened("mine", weights)], work=workspace(tmp_path), how=Execution(device="cpu"))


def test_checkpoints_of_different_shapes_are_refused_but_for_what_is_not_read(tmp_path: Path) -> None:
    tuned, base = (dict(checkpoints(OLMO2)[name]) for name in ("tuned", "base"))
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    part = SpectralPart(checkpoint=checkpoint, against=checkpoint.but(weights_digest="base"), layer=0, scope="heads", of="pair")
    del base["lm_head.weight"]  # as after tying the embeddings
    how, work = Execution(device="cpu"), workspace(tmp_path)
    decomposed(part, [Opened("tuned", tuned), Opened("base", base)], work=work, how=how)
    base["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(16, 32)
    with pytest.raises(ValueError, match=r"k_proj.weight is \(32, 32\) in tuned and \(16, 32\) in base"):
        decomposed(part, [Opened("tuned", tuned), Opened("base", base)], work=work, how=how)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"measures": ("stable_rnk",)}, r"unknown spectral measure 'stable_rnk' \(did you mean stable_rank"),
        ({"measures": ("svsm_mean",)}, "svsm_mean compares two checkpoints and there is one: give the other one as `against`"),
        ({"roles": ("gat",)}, r"unknown role 'gat' \(did you mean gate"),
        ({"roles": ()}, "a spectra table of no roles has no rows"),
        ({"roles": ("up",), "blocks": "heads"}, "of blocks=heads of the roles up has no rows.*of them q, k, v, o have heads"),
        ({"min_tail": 4}, "greater than or equal to 5"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    with pytest.raises(ValueError, match=message):
        Spectra(**{"checkpoint": checkpoint, "measures": ("stable_rank",), **fields})


def test_a_role_that_the_family_lacks_is_refused() -> None:
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=tiny_shape("gpt2"))
    with pytest.raises(ValueError, match="gpt2 models have no gate: choose roles from q, k, v, o, up, down"):
        Spectra(checkpoint=checkpoint, measures=("stable_rank",), roles=("gate",))


def test_a_part_of_a_layer_that_the_model_lacks_and_a_null_without_a_seed_are_refused() -> None:
    checkpoint = FolderCheckpoint(path="tuned", weights_digest="tuned", shape=OLMO2)
    for fields, message in (
        ({"layer": 2, "of": "values"}, "no layer 2 in a model of 2"),
        ({"layer": 0, "of": "pair"}, "a pair is of two checkpoints"),
        ({"layer": 0, "of": "null"}, "give it a seed"),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralPart.model_validate({"checkpoint": checkpoint, "scope": "heads", **fields})


def test_stored_products_of_another_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    spec, results = Spectra(checkpoint=saved(OLMO2, tmp_path / "one"), measures=("stable_rank",), blocks="heads"), tmp_path / "results"
    built(spec, results)
    store = Store(results)
    (columns,) = spec.columns()
    file = store.product(columns) / "columns.parquet"
    pd.read_parquet(file).drop(columns="hard_rank").to_parquet(file)
    with pytest.raises(ValueError, match=r"does not have the columns of norms \(hard_rank\).*remove the folder .*norms-heads"):
        built(spec.but(measures=("hard_rank",)), results)
    part = store.product(columns.needs()[0]) / "part.safetensors"
    save_file({name: tensor for name, tensor in load_file(part).items() if name != "k.std"}, part)
    with pytest.raises(ValueError, match=r"holds no k.std: another version of this code made it; remove the folder .*values-heads-layer0"):
        built(spec.but(measures=("mp_edge",)), results)
    save_file({name: tensor[..., :3].clone() if tensor.ndim else tensor for name, tensor in load_file(part).items()}, part)
    with pytest.raises(ValueError, match=r"holds q.values of \(4, 3\) and not \(4, 8\)"):
        built(spec.but(measures=("pl_alpha",)), results)


# -------------------------------------------------------------------------------------------------------- choosing measures


def test_presets_and_families_stand_for_their_measures_and_leave_out_what_compares_two_where_there_is_one() -> None:
    assert chosen("norms", pair=False) == MEASURES["norms"]
    assert chosen(["stable_rank", "lifecycle"], pair=False)[0] == "stable_rank"
    paper = chosen("paper", pair=True)
    assert set(paper) - set(chosen("paper", pair=False)) == set(MEASURES["agreement"])
    assert set(EVERY) == set(NAMES) - set(MEASURES["tails"])
    assert not {name for family in PAIR_FAMILIES for name in MEASURES[family]} & set(chosen("all", pair=False))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("papr", r"unknown spectral measure or preset 'papr' \(did you mean paper"),
        (("stable_rank", "pl_alfa"), r"unknown spectral measure or preset 'pl_alfa' \(did you mean pl_alpha"),
        ("post_training", "the measures of post_training compare two checkpoints and there is one"),
        ((), "no spectral measures are chosen"),
    ],
)
def test_measures_that_cannot_be_meant_are_refused(names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(names, pair=False)
