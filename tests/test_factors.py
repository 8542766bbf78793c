from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_lab.factors import (
    Factors,
    Truncations,
    factors,
    rank_kept,
    rotated,
    short_side,
    signs_of,
    singular_values,
    with_singular_values,
)

SIZES = [(40, 12), (12, 40), (20, 20)]


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made: Tensor = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q
    return made


def with_spectrum(rows: int, columns: int, singular: Tensor, seed: int = 0) -> Tensor:
    rank = len(singular)
    return (orthonormal(rows, rank, seed) * singular) @ orthonormal(columns, rank, seed + 1).mT


def decomposed(matrix: Tensor) -> Factors:
    return factors(matrix, short_side(matrix))


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e7, 1e14])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_singular_values_are_those_of_the_float64_decomposition(rows: int, columns: int, condition: float) -> None:
    made = torch.logspace(0, -math.log10(condition), min(rows, columns), dtype=torch.float64)
    matrix = with_spectrum(rows, columns, made)
    theirs = torch.linalg.svdvals(matrix)
    tolerance = 1e-6 * made + 1e-15  # P's own spectra reach a condition of 1e5
    for values in (singular_values(matrix), short_side(matrix).singular):
        assert bool(((values - theirs).abs() <= tolerance).all())


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e7, 1e14])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_truncations_are_those_of_the_float64_decomposition(rows: int, columns: int, condition: float) -> None:
    rank = min(rows, columns)
    delta = with_spectrum(rows, columns, torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64))
    left, singular, right = torch.linalg.svd(delta, full_matrices=False)
    base = torch.zeros_like(delta)
    for kept in range(rank + 1):
        theirs = (left[:, :kept] * singular[:kept]) @ right[:kept]
        ours = Truncations(delta, base).of_rank(kept, delta, base)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(ranks=st.lists(st.integers(0, 48), max_size=6), wide=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_kept_sum_changes_no_bit_and_neither_matrix(ranks: list[int], wide: bool, dtype: torch.dtype) -> None:
    shape = (48, 1300) if wide else (1300, 48)  # more rows than are computed at once
    tuned, base = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    before = tuned.clone(), base.clone()
    kept, alone = ladders(tuned, base)
    for rank in ranks:
        assert torch.equal(kept.of_rank(rank, tuned, base), alone.of_rank(rank, tuned, base))
    assert torch.equal(tuned, before[0])
    assert torch.equal(base, before[1])


def ladders(tuned: Tensor, base: Tensor) -> tuple[Truncations, Truncations]:
    kept, alone = Truncations(tuned, base), Truncations(tuned, base)
    kept.keep = True
    return kept, alone


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_no_matrix_of_that_rank_is_nearer_than_a_truncation(rows: int, columns: int) -> None:
    delta = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    singular, base = torch.linalg.svdvals(delta), torch.ones_like(delta)
    for kept in (1, 5, 11):
        new = Truncations(base + delta, base).of_rank(kept, base + delta, base)
        assert torch.linalg.matrix_rank(new - base) == kept
        torch.testing.assert_close((base + delta - new).norm(), singular[kept:].norm())  # Eckart, Young and Mirsky


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), rank=st.integers(0, 9), scale=st.sampled_from([1e-12, 1.0, 1e6]))
def test_vectors_are_orthonormal_and_give_the_matrix_back_whatever_its_rank(rows: int, columns: int, rank: int, scale: float) -> None:
    singular = scale * torch.linspace(2, 1, min(rank, rows, columns), dtype=torch.float64)
    matrix = with_spectrum(rows, columns, singular, seed=3)
    found = decomposed(matrix)
    torch.testing.assert_close(found.matrix(), matrix, rtol=0, atol=1e-13 * scale * 10)
    for vectors in found.vectors:
        torch.testing.assert_close(vectors.mT @ vectors, torch.eye(vectors.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((found.singular.diff() <= 0).all())


@pytest.mark.parametrize(("percent", "rank"), [(0, 0), (1, 1), (29, 37), (50, 64), (57, 72), (99, 126), (100, 128)])
def test_the_rank_kept_is_the_floor_of_percent_times_the_short_side(percent: int, rank: int) -> None:
    assert rank_kept(percent, 128, 512) == rank_kept(percent, 512, 128) == rank


def test_a_float_share_would_keep_one_too_few() -> None:
    wrong = [percent for percent in range(101) if int(percent / 100 * 100) != rank_kept(percent, 100, 100)]
    assert wrong == [29, 57, 58]


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_other_singular_values_leave_the_vectors(rows: int, columns: int) -> None:
    rank = min(rows, columns)
    matrix = with_spectrum(rows, columns, torch.linspace(3, 1, rank, dtype=torch.float64))
    new = with_singular_values(matrix, short_side(matrix), torch.linspace(9, 2, rank, dtype=torch.float64))
    torch.testing.assert_close(new, with_spectrum(rows, columns, torch.linspace(9, 2, rank, dtype=torch.float64)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_where_both_sides_rotated_alike_restoration_gives_the_post_trained_matrix(rows: int, columns: int, axis: int) -> None:
    rank = min(rows, columns)
    base, turn = decomposed(torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))), orthonormal(rank, rank, 7)
    singular = torch.linspace(5, 1, rank, dtype=torch.float64)
    post = Factors(singular, (base.vectors[0] @ turn, base.vectors[1] @ turn)).matrix()
    restored = rotated(decomposed(post), base, axis=axis, restore=True)
    torch.testing.assert_close(restored, post, rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_a_restoration_is_a_root_and_a_polar_factor_and_knows_no_signs(rows: int, columns: int, axis: int) -> None:
    """U_post S U_post^T = (W W^T)^(1/2) and U_base V_base^T, the orthogonal polar factor, are the same for all choices of signs."""
    post, base = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    left, _, right = np.linalg.svd(base.numpy(), full_matrices=False)
    gram = (post.mT @ post if axis == 0 else post @ post.mT).numpy()
    values, vectors = np.linalg.eigh(gram)
    root = (vectors * np.sqrt(np.where(values > 1e-10, values, 0))) @ vectors.T  # the root of a rounding error is none
    expected = left @ right @ root if axis == 0 else root @ left @ right
    np.testing.assert_allclose(rotated(decomposed(post), decomposed(base), axis=axis, restore=True).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_an_ablation_of_no_rotation_is_the_identity_whatever_the_signs_of_the_base(axis: int) -> None:
    matrix = torch.randn(9, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    post = decomposed(matrix)
    turned = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    base = Factors(post.singular, (post.vectors[0] * turned, post.vectors[1] * turned))
    for signs in ("aligned", "own"):
        torch.testing.assert_close(rotated(post, base, axis=axis, restore=False, signs=signs), matrix)


def test_aligned_signs_make_every_pair_agree_and_own_signs_follow_the_largest_entries() -> None:
    post = torch.tensor([[0.8, 0.6], [0.6, -0.8]])
    base = torch.tensor([[-0.6, 0.8], [-0.8, 0.6]])
    assert signs_of(post, base, "aligned").tolist() == [-1.0, 1.0]
    assert signs_of(post, base, "own").tolist() == [-1.0, -1.0]


def test_an_ablation_takes_one_side_of_the_base_and_keeps_the_singular_values() -> None:
    post, base = (torch.randn(8, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    new = rotated(decomposed(post), decomposed(base), axis=1, restore=False)
    assert torch.allclose(torch.linalg.svdvals(new), torch.linalg.svdvals(post))
    torch.testing.assert_close(
        new.mT @ new, decomposed(base).vectors[1] * decomposed(post).singular.square() @ decomposed(base).vectors[1].mT
    )
    torch.testing.assert_close(new @ new.mT, post @ post.mT)
