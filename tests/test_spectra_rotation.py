"""Do both sides of a matrix turn together: known rotations, what signs and scale do not change, matrices without anything in common."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt_lab.spectra import MEASURES
from cpt_lab.spectra.families import FAMILIES
from cpt_lab.spectra.pairs import pair
from cpt_lab.spectra.rotation import Overlaps, deviation, together
from spectra_cases import orthonormal, random, with_values

NAMES = MEASURES["rotation"]
VALUES = torch.arange(8, 0, -1, dtype=torch.float64)


def measured(base: torch.Tensor, tuned: torch.Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in FAMILIES["rotation"].columns(pair(base, tuned), NAMES).items()}


def in_plane(size: int, angle: float) -> torch.Tensor:
    """The rotation by an angle in each plane of two axes that follow each other."""
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    return torch.block_diag(*[turn] * (size // 2))


def by_loops(base: np.ndarray, tuned: np.ndarray) -> dict[str, float]:
    """The same from numpy's decompositions, entry by entry."""
    (left_base, _, right_base), (left_tuned, _, right_tuned) = (np.linalg.svd(block, full_matrices=False) for block in (base, tuned))
    first, second = left_base.T @ left_tuned, right_base @ right_tuned.T
    size = len(first)
    squares = 0.0
    for row in range(size):
        for column in range(size):
            entry = sum(first[place, row] * second[place, column] for place in range(size))
            squares += (entry - (row == column)) ** 2
    return {"rotation_nf": math.sqrt(squares) / size}


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (12, 12)])
def test_every_measure_equals_plain_loops(shape: tuple[int, int]) -> None:
    base, tuned = random(*shape), random(*shape) + 0.3 * random(*shape, seed=1)
    assert measured(base, tuned) == pytest.approx(by_loops(base.numpy(), tuned.numpy()), rel=1e-9)


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (12, 12)])
def test_a_matrix_has_turned_nowhere_from_itself_and_its_multiples(shape: tuple[int, int]) -> None:
    block = random(*shape)
    for tuned, deviates in ((block, 0.0), (3 * block, 0.0), (-block, 2 / math.sqrt(min(shape)))):
        assert measured(block, tuned) == pytest.approx({"rotation_nf": deviates}, abs=1e-7)


@pytest.mark.parametrize("angle", [0.0, 0.2, 1.0])
def test_vectors_that_turn_by_one_angle_on_both_sides_turn_together(angle: float) -> None:
    left, right, turn = orthonormal(30, 8), orthonormal(8, 8, seed=1), in_plane(8, angle)
    base, tuned = (left * VALUES) @ right.mT, (left @ turn * VALUES) @ (right @ turn).mT
    assert measured(base, tuned) == pytest.approx({"rotation_nf": 0}, abs=1e-9)


@pytest.mark.parametrize("angle", [0.2, 1.0])
def test_a_side_that_turns_alone_deviates_as_far_as_it_turns(angle: float) -> None:
    left, right, turn = orthonormal(30, 8), orthonormal(8, 8, seed=1), in_plane(8, angle)
    base, tuned = (left * VALUES) @ right.mT, (left @ turn * VALUES) @ right.mT
    distance = math.sqrt(8 * (2 - 2 * math.cos(angle))) / 8
    assert measured(base, tuned) == pytest.approx({"rotation_nf": distance}, abs=1e-9)


def test_square_matrices_that_have_nothing_in_common_deviate_as_far_as_chance() -> None:
    found = measured(random(200, 200), random(200, 200, seed=1))
    assert found["rotation_nf"] == pytest.approx(math.sqrt(2 / 200), rel=0.02)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 12), columns=st.integers(2, 12), scale=st.sampled_from([1e-3, 7.0]))
def test_a_rotation_of_both_spaces_and_a_scale_change_nothing(seed: int, rows: int, columns: int, scale: float) -> None:
    base, tuned = random(rows, columns, seed=seed), random(rows, columns, seed=seed + 1)
    left, right = orthonormal(rows, rows, seed), orthonormal(columns, columns, seed + 1)
    assert measured(left @ base @ right, scale * left @ tuned @ right) == pytest.approx(measured(base, tuned), abs=1e-6)


def test_the_signs_that_a_decomposition_leaves_open_change_no_deviation() -> None:
    residual, head = random(6, 6), random(6, 6, seed=1)
    signs, others = torch.tensor([1.0, -1, 1, 1, -1, -1]).double(), torch.tensor([-1.0, -1, 1, -1, 1, 1]).double()
    flipped = Overlaps(*(signs[:, None] * side * others for side in (residual, head)))
    assert float(deviation(flipped)) == pytest.approx(float(deviation(Overlaps(residual, head))))
    assert torch.allclose(together(flipped).abs(), together(Overlaps(residual, head)).abs())


def test_vectors_without_a_singular_value_do_not_count() -> None:
    low, zero = with_values(torch.tensor([3.0, 2, 0, 0]).double(), 20), torch.zeros(20, 4, dtype=torch.float64)
    assert measured(low, 2 * low) == pytest.approx({"rotation_nf": 0}, abs=1e-9)
    assert math.isnan(measured(low, zero)["rotation_nf"])
