"""Agreement of singular vectors: its limits, parity with numpy, and which side of a block is which."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_lab.architecture import head_matrix, is_transposed
from cpt_lab.edits import narrow
from cpt_lab.spectra import AGREEMENTS
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.pairs import noise_floor, pair
from cpt_lab.weights import open_weights
from factory import tiny_shape
from spectra_cases import orthonormal, random
from spectral_tables import built, saved, table_spec

VALUES = ("agreement_residual_max", "agreement_residual_diagonal", "agreement_head_max", "agreement_head_diagonal")


def columns(base: torch.Tensor, tuned: torch.Tensor) -> dict[str, torch.Tensor]:
    return FAMILIES["agreement"].columns(pair(base, tuned), VALUES)


def measured(base: torch.Tensor, tuned: torch.Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in columns(base, tuned).items()}


def by_numpy(base: np.ndarray, tuned: np.ndarray) -> dict[str, float]:
    """The four of blocks (residual, head) from numpy's full decompositions."""
    (left_base, _, right_base), (left_tuned, _, right_tuned) = (np.linalg.svd(block, full_matrices=False) for block in (base, tuned))
    found = {}
    for side, agreement in (("residual", abs(left_base.T @ left_tuned)), ("head", abs(right_base @ right_tuned.T))):
        found[f"agreement_{side}_max"] = float(agreement.max(axis=1).mean())
        found[f"agreement_{side}_diagonal"] = float(np.diag(agreement).mean())
    return found


def test_a_block_agrees_with_itself_and_with_its_multiples_completely() -> None:
    block = random(40, 8)
    assert measured(block, block) == pytest.approx(dict.fromkeys(VALUES, 1.0))
    assert measured(block, -3 * block) == pytest.approx(dict.fromkeys(VALUES, 1.0))


def test_blocks_in_orthogonal_spaces_do_not_agree_there() -> None:
    basis = torch.linalg.qr(random(40, 16)).Q
    found = measured(basis[:, :8] * torch.arange(8, 0, -1), basis[:, 8:] * torch.arange(8, 0, -1))
    assert found["agreement_residual_max"] == pytest.approx(0, abs=1e-9)
    assert found["agreement_head_max"] == pytest.approx(1)


def test_vectors_that_change_places_keep_their_row_maximum_and_lose_their_diagonal() -> None:
    left, right = torch.linalg.qr(random(20, 4)).Q, torch.linalg.qr(random(4, 4, seed=1)).Q
    base, tuned = ((left * torch.tensor(values)) @ right.mT for values in ([4.0, 3, 2, 1], [1.0, 2, 3, 4]))
    assert measured(base, tuned) == pytest.approx(dict(zip(VALUES, (1, 0, 1, 0), strict=True)), abs=1e-9)


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16)])
def test_agreements_equal_those_of_numpy(shape: tuple[int, int]) -> None:
    base, tuned = random(3, *shape), random(3, *shape, seed=1)
    for index in range(3):
        expected = by_numpy(base[index].numpy(), tuned[index].numpy())
        assert {name: float(value[index]) for name, value in columns(base, tuned).items()} == pytest.approx(expected, rel=1e-9)


def test_ill_conditioned_blocks_equal_those_of_numpy_too() -> None:
    left, right = torch.linalg.qr(random(40, 8)).Q, torch.linalg.qr(random(8, 8, seed=1)).Q
    base = (left * torch.logspace(0, -9, 8)) @ right.mT
    tuned = base + 1e-12 * random(40, 8, seed=2)
    assert measured(base, tuned) == pytest.approx(by_numpy(base.numpy(), tuned.numpy()), abs=1e-6)


def test_vectors_without_a_singular_value_do_not_count() -> None:
    basis = torch.linalg.qr(random(30, 6)).Q
    low, zero = torch.outer(basis[:, 0], random(6)), torch.zeros(30, 6, dtype=torch.float64)
    assert measured(low, low) == pytest.approx(dict.fromkeys(VALUES, 1.0))
    assert all(np.isnan(value) for pairs in ((zero, low), (low, zero), (zero, zero)) for value in measured(*pairs).values())


def test_random_blocks_agree_about_as_much_as_noise() -> None:
    found = measured(random(2048, 64), random(2048, 64, seed=1))
    assert found["agreement_residual_max"] == pytest.approx(noise_floor(64, 2048), rel=0.15)
    assert (noise_floor(128, 128), noise_floor(128, 4096)) == pytest.approx((0.28, 0.05), abs=0.01)


def test_a_noise_floor_stands_beside_each_side() -> None:
    found = FAMILIES["agreement"].columns(pair(random(2, 40, 8), random(2, 40, 8, seed=1)), AGREEMENTS)
    assert list(found) == list(AGREEMENTS)
    assert found["agreement_residual_noise"].tolist() == [math.sqrt(2 * math.log(8) / 40)] * 2
    assert found["agreement_head_noise"].tolist() == [math.sqrt(2 * math.log(8) / 8)] * 2


@pytest.mark.parametrize("angle", [0.1, 0.7])
def test_the_left_vectors_of_a_matrix_that_is_turned_by_an_angle_agree_by_its_cosine(angle: float) -> None:
    basis, other = orthonormal(40, 16)[:, :8], orthonormal(40, 16)[:, 8:]
    values, right = torch.arange(8, 0, -1, dtype=torch.float64), orthonormal(8, 8, seed=1)
    base, tuned = (vectors * values @ right.mT for vectors in (basis, math.cos(angle) * basis + math.sin(angle) * other))
    expected = (math.cos(angle), math.cos(angle), 1, 1)
    assert measured(base, tuned) == pytest.approx(dict(zip(VALUES, expected, strict=True)), abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 12), columns=st.integers(2, 12), scale=st.sampled_from([1e-3, 7.0]))
def test_a_rotation_of_both_spaces_and_a_scale_change_no_agreement(seed: int, rows: int, columns: int, scale: float) -> None:
    base, tuned = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    left, right = orthonormal(rows, rows, seed), orthonormal(columns, columns, seed + 1)
    assert measured(left @ base @ right, -scale * left @ tuned @ right) == pytest.approx(measured(base, tuned), abs=1e-6)


@pytest.mark.parametrize("family", ["olmo2", "gpt2"])
def test_the_residual_side_of_every_role_is_that_of_the_models_width(tmp_path: Path, family: str) -> None:
    shape = tiny_shape(family)
    tuned, base = (saved(shape, tmp_path / name, seed=seed) for seed, name in enumerate(["tuned", "base"]))
    table = built(table_spec(tuned, base, measures=VALUES, blocks="heads"), tmp_path / "results").set_index(["layer", "role", "head"])
    for role in ("q", "k", "v", "o"):
        turned = (role == "o") == is_transposed(shape)  # stored as head x residual
        folders = (tmp_path / name for name in ("base", "tuned"))
        blocks = [narrow(open_weights(folder), head_matrix(shape, 1, 2, role)).double().numpy() for folder in folders]
        expected = by_numpy(*(block.T if turned else block for block in blocks))
        assert table.loc[(1, role, 2), list(VALUES)].to_dict() == pytest.approx(expected, rel=1e-6)
