from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cpt_lab.orderings import DELTA_MEASURES
from cpt_lab.specs import Spectra, key
from cpt_lab.spectra import NAMES, NORMS, measures
from cpt_lab.spectra.measures import MEASURES, singular_values, spectrum
from cpt_lab.spectra.pairs import PAIR_MEASURES
from cpt_lab.spectra.table import build_table
from cpt_lab.weights import open_weights
from factory import folder_spec, tiny_checkpoint, tiny_shape, workspace

RANKS = ("stable_rank", "effective_rank", "hard_rank")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def measured(matrix: torch.Tensor, stored: torch.dtype = torch.float32) -> dict[str, float]:
    found = spectrum(matrix, stored)
    return {name: float(MEASURES[name](found)) for name in NORMS}


# -------------------------------------------------------------------------------------------------------- the measures


def test_an_orthogonal_matrix_has_full_rank_in_every_sense() -> None:
    matrix = torch.linalg.qr(random(40, 16)).Q
    values = measured(matrix)
    assert values["spectral_norm"] == pytest.approx(1)
    assert values["frobenius_norm"] == pytest.approx(4)
    assert values["spectral_entropy"] == pytest.approx(math.log(16))
    assert [values[name] for name in RANKS] == pytest.approx([16, 16, 16])


def test_an_outer_product_has_rank_one_in_every_sense() -> None:
    values = measured(torch.outer(random(40), random(16, seed=1)))
    assert values["spectral_norm"] == pytest.approx(values["frobenius_norm"])
    assert [values[name] for name in RANKS] == pytest.approx([1, 1, 1], abs=1e-9)
    assert values["spectral_entropy"] == pytest.approx(0, abs=1e-9)


def test_the_zero_matrix_measures_zero_everywhere() -> None:
    assert set(measured(torch.zeros(5, 3)).values()) == {0.0}


def test_a_single_column_has_rank_one() -> None:
    values = measured(torch.tensor([[3.0], [4.0]]))
    assert values == {"frobenius_norm": 5, "spectral_norm": 5, "stable_rank": 1, "effective_rank": 1, "spectral_entropy": 0, "hard_rank": 1}


def test_two_known_singular_values_by_hand() -> None:
    values = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert float(measures.frobenius_norm(values)) == pytest.approx(math.sqrt(10))
    assert float(measures.stable_rank(values)) == pytest.approx(10 / 9)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(measures.spectral_entropy(values)) == pytest.approx(entropy)
    assert float(measures.effective_rank(values)) == pytest.approx(math.exp(entropy))
    assert [float(measures.hard_rank(values, tolerance)) for tolerance in (0.3, 0.4)] == [2, 1]


def test_the_hard_rank_knows_the_dtype_that_the_matrix_is_stored_in() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1e-3, 1e-9], dtype=torch.float64))
    assert [measured(matrix, dtype)["hard_rank"] for dtype in (torch.float64, torch.float32, torch.bfloat16)] == [3, 2, 1]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 20), columns=st.integers(1, 20), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_measures_obey_their_bounds_and_ignore_transposition_and_scale(seed: int, rows: int, columns: int, scale: float) -> None:
    matrix = random(rows, columns, seed=seed)
    values, transposed, scaled = measured(matrix), measured(matrix.mT), measured(scale * matrix)
    rank = min(rows, columns)
    assert values["spectral_norm"] <= values["frobenius_norm"] * (1 + 1e-12) <= math.sqrt(rank) * values["spectral_norm"] * (1 + 1e-9)
    assert 1 - 1e-9 <= values["stable_rank"] <= values["effective_rank"] * (1 + 1e-9) <= rank * (1 + 1e-8)
    assert transposed == pytest.approx(values, rel=1e-9)
    assert [scaled[name] for name in RANKS] == pytest.approx([values[name] for name in RANKS], rel=1e-9)
    assert scaled["frobenius_norm"] == pytest.approx(scale * values["frobenius_norm"])


@pytest.mark.parametrize("shape", [(3, 7, 20), (3, 20, 7), (2, 2, 9, 9)])
def test_singular_values_of_a_batch_equal_those_of_numpy(shape: tuple[int, ...]) -> None:
    batch = random(*shape)
    assert singular_values(batch).numpy() == pytest.approx(np.linalg.svd(batch.numpy(), compute_uv=False), rel=1e-10)


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e7, 1e12])
def test_ill_conditioned_blocks_keep_their_small_singular_values(condition: float) -> None:
    left, right = torch.linalg.qr(random(64, 16)).Q, torch.linalg.qr(random(16, 16, seed=1)).Q
    exact = torch.logspace(0, -math.log10(condition), 16, dtype=torch.float64)
    found = singular_values(torch.stack([(left * exact) @ right.mT, random(64, 16)]))
    tolerance = 1e-6 if condition <= 1e5 else 1e-14 * condition
    assert found[0].numpy() == pytest.approx(exact.numpy(), rel=tolerance)
    assert found[1].numpy() == pytest.approx(np.linalg.svd(random(64, 16).numpy(), compute_uv=False), rel=1e-10)


# ----------------------------------------------------------------------------------------------------------- the table


def pair(folder: Path, kv_heads: int, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    tuned, base = (
        tiny_checkpoint(folder / name, seed=seed, num_kv_heads=kv_heads, dtype=dtype) for seed, name in enumerate(["tuned", "base"])
    )
    return tuned, base


def delta_spec(tuned: Path, base: Path, kv_heads: int, names: tuple[str, ...] = DELTA_MEASURES) -> Spectra:
    shape = tiny_shape(num_kv_heads=kv_heads)
    return Spectra(checkpoint=folder_spec(tuned, shape), against=folder_spec(base, shape), measures=names)


def built(spec: Spectra, checkpoint: Path, against: Path | None, folder: Path) -> pd.DataFrame:
    work = workspace(folder)
    build_table(spec, checkpoint=checkpoint, against=against, work=work)
    return pd.read_parquet(work.product / "table.parquet")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_delta_norms_equal_plain_float64_loops(tmp_path: Path, kv_heads: int, dtype: torch.dtype) -> None:
    tuned, base = pair(tmp_path, kv_heads, dtype)
    table = built(delta_spec(tuned, base, kv_heads), tuned, base, tmp_path / "work")
    left, right = open_weights(tuned), open_weights(base)
    expected = {}
    for layer in range(2):
        for role, count in {"q": 4, "k": kv_heads, "v": kv_heads, "o": 4}.items():
            name = f"model.layers.{layer}.self_attn.{role}_proj.weight"
            delta = left[name].double().numpy() - right[name].double().numpy()
            for head in range(count):
                block = delta[:, 8 * head : 8 * head + 8] if role == "o" else delta[8 * head : 8 * head + 8]
                expected[layer, role, head] = math.sqrt(sum(float(entry) ** 2 for entry in block.ravel()))
            expected[layer, role, -1] = math.sqrt(sum(float(entry) ** 2 for entry in delta.ravel()))
        for role in ("gate", "up", "down"):
            name = f"model.layers.{layer}.mlp.{role}_proj.weight"
            delta = left[name].double().numpy() - right[name].double().numpy()
            expected[layer, role, -1] = math.sqrt(sum(float(entry) ** 2 for entry in delta.ravel()))
    found = {(row.layer, row.role, row.head): row.frobenius_norm for row in table.itertuples()}
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(found) == len(table)


def test_every_column_of_a_head_equals_numpy_of_its_block(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, 4)
    table = built(delta_spec(tuned, base, 4, NORMS), tuned, base, tmp_path / "work")
    name = "model.layers.1.self_attn.o_proj.weight"
    block = (open_weights(tuned)[name].double() - open_weights(base)[name].double())[:, 16:24].numpy()
    values = np.linalg.svd(block, compute_uv=False)
    shares = values / values.sum()
    row = table[(table.layer == 1) & (table.role == "o") & (table["head"] == 2)].iloc[0]
    assert row.spectral_norm == pytest.approx(values[0])
    assert row.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2)
    assert row.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert row.hard_rank == 8


def test_a_table_says_what_it_is_of(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, 4)
    spec = delta_spec(tuned, base, 4)
    table = built(spec, tuned, base, tmp_path / "work")
    assert spec.against is not None
    assert set(table.checkpoint) == {key(spec.checkpoint)}
    assert set(table.against) == {key(spec.against)}
    assert list(table.columns) == ["checkpoint", "against", "layer", "role", "head", *spec.measures]


def test_without_a_base_the_weights_themselves_are_measured(tmp_path: Path) -> None:
    tuned, _ = pair(tmp_path, 4)
    spec = Spectra(checkpoint=folder_spec(tuned, tiny_shape()), measures=("frobenius_norm",))
    table = built(spec, tuned, None, tmp_path / "work")
    whole = table[(table.layer == 0) & (table.role == "up")].frobenius_norm.item()
    assert whole == pytest.approx(float(torch.linalg.norm(open_weights(tuned)["model.layers.0.mlp.up_proj.weight"].double())))
    assert table.against.isna().all()


def test_the_delta_of_a_checkpoint_to_itself_measures_zero_everywhere(tmp_path: Path) -> None:
    tuned, _ = pair(tmp_path, 4)
    table = built(delta_spec(tuned, tuned, 4, NORMS), tuned, tuned, tmp_path / "work")
    assert not table[list(NORMS)].to_numpy().any()


def test_a_table_of_heads_leaves_the_whole_matrices_out(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, 2)
    spec = delta_spec(tuned, base, 2)
    every, heads = (built(spec.but(blocks=blocks), tuned, base, tmp_path / blocks) for blocks in ("all", "heads"))
    pd.testing.assert_frame_equal(heads, every[every["head"] >= 0].reset_index(drop=True))


def test_planning_knows_the_name_of_every_measure() -> None:
    assert set(NAMES) == {*MEASURES, *PAIR_MEASURES}
    assert len(NAMES) == len(MEASURES) + len(PAIR_MEASURES)


def test_progress_counts_all_matrices(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, 4)
    built(delta_spec(tuned, base, 4), tuned, base, tmp_path / "work")
    progress = json.loads((tmp_path / "work" / "progress.json").read_text())
    assert (progress["done"], progress["total"], progress["unit"]) == (14, 14, "matrices")


def test_values_that_are_not_finite_are_named_by_checkpoint_and_parameter(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, 4)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"folder.*base\) has 1 values in model.layers.1.mlp.up_proj.weight"):
        built(delta_spec(tuned, base, 4), tuned, base, tmp_path / "work")


def test_checkpoints_of_different_shapes_are_refused(tmp_path: Path) -> None:
    tuned, _ = pair(tmp_path, 4)
    other = tiny_checkpoint(tmp_path / "other", num_kv_heads=2)
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn.k_norm.weight is \(32,\)"):
        built(delta_spec(tuned, other, 4), tuned, other, tmp_path / "work")


def test_an_unknown_measure_is_refused_with_the_nearest(tmp_path: Path) -> None:
    tuned, base = pair(tmp_path, 4)
    with pytest.raises(ValueError, match=r"unknown spectral measure 'stable_rnk' \(did you mean stable_rank"):
        built(delta_spec(tuned, base, 4, ("stable_rnk",)), tuned, base, tmp_path / "work")
