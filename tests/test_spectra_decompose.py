"""Decompositions of many matrices: accuracy, what their bits may depend on, and permutations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_lab.spectra import decompose, pairs

SIZES = [(40, 12), (12, 40), (20, 20), (7, 1), (1, 1), (129, 65)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_spectrum(rows: int, columns: int, singular: Tensor) -> Tensor:
    left, right = (torch.linalg.qr(random(size, len(singular), seed=size)).Q for size in (rows, columns))
    return (left * singular) @ right.mT


def tensors(base: Tensor, tuned: Tensor, threads: int = 1) -> dict[str, Tensor]:
    return decompose.agreements(base, tuned, threads=threads).tensors()


@pytest.mark.parametrize("condition", [1e1, 1e4, 9e4, 1.1e5, 1e9, 1e14])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_values_above_a_hundred_thousandth_of_the_largest_are_right_to_a_millionth(rows: int, columns: int, condition: float) -> None:
    matrix = with_spectrum(rows, columns, torch.logspace(0, -math.log10(condition), min(rows, columns), dtype=torch.float64))
    exact = torch.linalg.svdvals(matrix)
    found = decompose.values(matrix[None])[0]
    large = exact > 1e-5 * exact[0]
    torch.testing.assert_close(found[large], exact[large], rtol=1e-6, atol=0)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-11 * float(exact[0]))


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 24), columns=st.integers(1, 24), scale=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_values_are_those_of_the_transposed_matrix_and_scale_with_it(seed: int, rows: int, columns: int, scale: float) -> None:
    matrix = random(1, rows, columns, seed=seed)
    found = decompose.values(matrix)
    torch.testing.assert_close(decompose.values(matrix.mT), found, rtol=1e-6, atol=1e-11)
    torch.testing.assert_close(decompose.values(scale * matrix), scale * found, rtol=1e-6, atol=1e-11 * scale)


def test_zero_matrices_have_zero_values_and_no_vectors() -> None:
    zero = torch.zeros(2, 9, 4)
    assert not decompose.values(zero).any()
    assert not decompose.permuted_values(zero, seeds=[0, 1]).any()
    assert all(torch.isnan(found).all() for found in tensors(zero, random(2, 9, 4)).values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_stored_dtype_is_decomposed_in_float64(dtype: torch.dtype) -> None:
    matrices = random(3, 17, 5).to(dtype)
    torch.testing.assert_close(decompose.values(matrices), torch.linalg.svdvals(matrices.double()), rtol=1e-9, atol=0)


# ---------------------------------------------------------------------------------------------- what bits depend on


@pytest.mark.parametrize(("rows", "columns"), [(33, 7), (7, 33), (64, 16), (129, 65)])
@pytest.mark.parametrize("threads", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(rows: int, columns: int, threads: int) -> None:
    base, tuned = random(7, rows, columns), random(7, rows, columns, seed=1)
    assert torch.equal(decompose.values(base), decompose.values(base, threads=threads))
    nulls = [decompose.permuted_values(base, seeds=range(7), threads=count) for count in (1, threads)]
    assert torch.equal(*nulls)
    one, more = (tensors(base, tuned, count) for count in (1, threads))
    assert all(torch.equal(one[name], more[name]) for name in one)


@pytest.mark.parametrize(("rows", "columns"), [(33, 7), (7, 33), (129, 65)])
def test_bits_of_a_matrix_do_not_depend_on_the_others_nor_on_how_it_lies_in_memory(rows: int, columns: int) -> None:
    base, tuned = random(5, rows, columns).float(), random(5, rows, columns, seed=1).float()
    turned = [matrices.mT.contiguous().mT for matrices in (base, tuned)]
    batched, apart = (decompose.values(matrices) for matrices in (base, turned[0]))
    nulls, pairwise = decompose.permuted_values(base, seeds=range(5)), tensors(base, tuned)
    for index in range(5):
        alone = slice(index, index + 1)
        assert torch.equal(decompose.values(base[alone])[0], batched[index])
        assert torch.equal(apart[index], batched[index])
        assert torch.equal(decompose.permuted_values(turned[0][alone], seeds=[index])[0], nulls[index])
        assert all(torch.equal(found[0], pairwise[name][index]) for name, found in tensors(turned[0][alone], turned[1][alone]).items())


def test_an_ill_conditioned_mate_changes_nothing() -> None:
    fine, poor = random(1, 30, 6), with_spectrum(30, 6, torch.logspace(0, -9, 6, dtype=torch.float64))[None]
    assert torch.equal(decompose.values(torch.cat([fine, poor]))[0], decompose.values(fine)[0])
    both, alone = tensors(torch.cat([fine, poor]), torch.cat([poor, fine])), tensors(fine, poor)
    assert all(torch.equal(both[name][0], alone[name][0]) for name in alone)


def test_the_number_of_threads_of_torch_is_what_it_was() -> None:
    before = torch.get_num_threads()
    decompose.values(random(3, 8, 4), threads=2)
    with pytest.raises(RuntimeError):
        decompose.values(torch.full((2, 8, 4), torch.nan), threads=2)
    assert torch.get_num_threads() == before


# ------------------------------------------------------------------------------------------------------ permutations


@given(seed=st.integers(0, 2**63 - 1), rows=st.integers(1, 30), columns=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_a_permuted_matrix_has_the_same_entries(seed: int, rows: int, columns: int) -> None:
    matrix = random(rows, columns, seed=3).float()
    permuted = decompose.permuted(matrix, seed)
    assert permuted.shape == matrix.shape
    assert torch.equal(permuted.flatten().sort().values, matrix.flatten().sort().values)
    assert torch.equal(permuted, decompose.permuted(matrix, seed))


def test_every_entry_goes_to_every_place_equally_often() -> None:
    matrix = torch.tensor([[-2.0, 0.0], [1.0, 3.0]])
    places = np.zeros((4, 4))
    draws = 4000
    for seed in range(draws):
        order = torch.searchsorted(matrix.flatten(), decompose.permuted(matrix, seed).flatten())
        places[np.arange(4), order.numpy()] += 1
    chi_square = ((places - draws / 4) ** 2 / (draws / 4)).sum()
    assert chi_square < 27.9  # 9 degrees of freedom: by chance once in a thousand draws, and the seeds are fixed


def test_permuted_values_are_those_of_the_permuted_matrix() -> None:
    matrices = random(2, 12, 5).float()
    expected = [
        np.linalg.svd(decompose.permuted(matrix, seed).double().numpy(), compute_uv=False)
        for matrix, seed in zip(matrices, (5, 6), strict=True)
    ]
    np.testing.assert_allclose(decompose.permuted_values(matrices, seeds=(5, 6)).numpy(), expected, rtol=1e-12)


# -------------------------------------------------------------------------------------------------------- agreements


@pytest.mark.parametrize(("rows", "columns"), [(40, 8), (8, 40), (16, 16), (9, 1)])
@pytest.mark.parametrize("condition", [1e2, 5e4, 1e9])
def test_agreements_from_gram_matrices_are_those_of_the_vectors(rows: int, columns: int, condition: float) -> None:
    rank = min(rows, columns)
    base = with_spectrum(rows, columns, torch.logspace(0, -math.log10(condition), rank, dtype=torch.float64))
    tuned = base + 0.1 / condition * random(rows, columns)
    found = tensors(base[None], tuned[None])
    (left, _, right), (left_tuned, _, right_tuned) = (torch.linalg.svd(matrix, full_matrices=False) for matrix in (base, tuned))
    first, second = left.mT @ left_tuned, right @ right_tuned.mT
    expected = {
        "residual_max": first.abs().amax(1),
        "residual_diagonal": first.diagonal().abs(),
        "head_max": second.abs().amax(1),
        "head_diagonal": second.diagonal().abs(),
        "deviation": torch.linalg.matrix_norm(first.mT @ second - torch.eye(rank)) / rank,
    }
    assert set(found) == set(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor[0], expected[name], rtol=0, atol=2e-6, msg=name)


def test_agreements_say_the_sizes_of_both_sides() -> None:
    found = decompose.agreements(random(2, 12, 5), random(2, 12, 5, seed=1))
    assert (found.residual_size, found.head_size, found.residual_max.shape) == (12, 5, (2, 5))


def test_vectors_of_missing_rank_agree_with_nothing() -> None:
    low = torch.outer(random(9), random(4))[None]
    found = tensors(low, random(1, 9, 4))
    assert torch.isnan(found["residual_max"][0]).tolist() == [False, True, True, True]
    assert torch.isnan(tensors(random(1, 9, 4), low)["head_diagonal"][0]).tolist() == [False, True, True, True]


def test_a_device_without_threads_takes_batches_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The route of other devices, on the CPU."""
    monkeypatch.setattr(decompose, "MOST_ELEMENTS", 2 * 12 * 5)
    monkeypatch.setattr(decompose, "is_threaded", lambda _: False)
    base, tuned = random(5, 12, 5), random(5, 12, 5, seed=1)
    torch.testing.assert_close(decompose.values(base), torch.linalg.svdvals(base))
    found, expected = tensors(base, tuned), pairs.pair(base, tuned).tensors()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
