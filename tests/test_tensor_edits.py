"""Linear combinations, DARE and TIES on tensors small enough to work out by hand, and against their definitions in plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_lab.architecture import Slice
from cpt_lab.edits import SliceEdit
from cpt_lab.patch import Patch, apply
from cpt_lab.tensor_edits import BLOCK, EVERYTHING, Combine, Dare, Ties, arithmetic

WHOLE = Slice("w", 0, 0, 4)
BASE = [1.0, 1.0, 1.0, 1.0]
WEIGHTS = st.floats(-2, 2, allow_subnormal=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def values(edit: SliceEdit, tuned: Any, **sources: Any) -> Tensor:
    """The values of an edit of the parameter `w`."""
    weights = {name: {"w": torch.as_tensor(source)} for name, source in sources.items()}
    return edit.values(torch.as_tensor(tuned), weights, {})


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -------------------------------------------------------------------------------------------------- linear combinations


def test_a_combination_is_the_weighted_sum() -> None:
    edit = Combine(target=WHOLE, terms=(("self", 0.5), ("base", 0.25), ("other", 2.0)))
    assert values(edit, [2.0, 4.0, 0.0, -2.0], base=[4.0, 0.0, 4.0, 8.0], other=[1.0, 0.5, 0.0, -1.0]).tolist() == [4.0, 3.0, 1.0, -1.0]


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(WEIGHTS, min_size=1, max_size=4), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9))
def test_a_combination_equals_the_linear_merge_in_float64_rounded_to_the_stored_dtype(
    weights: list[float], dtype: torch.dtype, seed: int
) -> None:
    tensors = [random(3, 5, seed=seed + place, dtype=dtype) for place in range(len(weights))]
    names = ["self", "b", "c", "d"][: len(weights)]
    edit = Combine(target=Slice("w", 0, 0, 3), terms=tuple(zip(names, weights, strict=True)))
    found = values(edit, tensors[0], **dict(zip(names, tensors, strict=True)))
    terms = [weight * tensor.double() for weight, tensor in zip(weights, tensors, strict=True)]
    exact = torch.stack(terms).sum(0)
    rounding = exact.abs() * torch.finfo(dtype).eps / 2 + torch.finfo(dtype).tiny
    arithmetic_error = torch.stack(terms).abs().sum(0) * (1e-14 if dtype == torch.float32 else 1e-6)
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= 1.001 * rounding + arithmetic_error).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_endpoint_is_bit_for_bit(dtype: torch.dtype) -> None:
    tuned, other = random(4, seed=0, dtype=dtype), random(4, seed=1, dtype=dtype)
    tuned[0] = -0.0
    for weights, expected in (((1.0, 0.0), tuned), ((0.0, 1.0), other)):
        found = values(Combine(target=WHOLE, terms=(("self", weights[0]), ("other", weights[1]))), tuned, other=other)
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_a_checkpoint_with_weight_zero_is_not_read() -> None:
    assert values(Combine(target=WHOLE, terms=(("self", 0.5), ("nobody", 0.0))), [2.0, 4.0, 6.0, 8.0]).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_sixteen_bits_are_summed_in_thirty_two_and_rounded_once() -> None:
    one, tiny = torch.ones(4, dtype=torch.bfloat16), torch.full((4,), 2.0**-9, dtype=torch.bfloat16)
    edit = Combine(target=WHOLE, terms=(("self", 1.0), ("a", 2.0), ("b", 2.0)))
    assert values(edit, one, a=tiny, b=tiny).tolist() == [1 + 2.0**-7] * 4  # after rounding 1 + 2^-8 to even it would be 1


def test_a_large_tensor_is_summed_as_a_small_one() -> None:
    left, right = random(BLOCK + 7, seed=0), random(BLOCK + 7, seed=1)
    edit = Combine(target=Slice("w", 0, 0, BLOCK + 7), terms=(("self", 0.3), ("other", 0.7)))
    assert torch.equal(values(edit, left, other=right), (0.3 * left.double() + 0.7 * right.double()).float())


def test_columns_are_summed_as_rows_are() -> None:
    left, right = random(6, 4, seed=0), random(6, 4, seed=1)
    part, across = Slice("w", 1, 1, 3), Slice("w", 0, 1, 3)
    terms = (("self", 0.3), ("other", 0.7))
    found = values(Combine(target=part, terms=terms), left[:, 1:3], other=right)
    assert torch.equal(found, values(Combine(target=across, terms=terms), left.T[1:3].contiguous(), other=right.T.contiguous()).T)


# ----------------------------------------------------------------------------------------------------- task arithmetic


@given(scale=WEIGHTS)
def test_the_weights_of_task_arithmetic_add_up_to_one(scale: float) -> None:
    assert sum(weight for _, weight in arithmetic("base", (("self", scale), ("b", 0.5)))) == pytest.approx(1)


def test_task_arithmetic_adds_scaled_deltas_to_the_base() -> None:
    edit = Combine(target=WHOLE, terms=arithmetic("base", (("self", 0.5), ("other", 2.0))))
    assert values(edit, [3.0, 1.0, -1.0, 1.0], base=BASE, other=[1.0, 2.0, 1.0, 0.0]).tolist() == [2.0, 3.0, 0.0, -1.0]


# ---------------------------------------------------------------------------------------------------------------- DARE


def dare(drop: float, *, seed: int = 0, terms: tuple[tuple[str, float], ...] = (("self", 1.0),), target: Slice = WHOLE) -> Dare:
    return Dare(target=target, base="base", terms=terms, drop=drop, seed=seed)


def test_dare_keeps_the_base_or_rescales_the_delta_of_each_element() -> None:
    tuned, base = random(1000, seed=0), random(1000, seed=1)
    found = values(dare(0.75, target=Slice("w", 0, 0, 1000)), tuned, base=base)
    rescaled = (base.double() + (tuned.double() - base.double()) / 0.25).float()
    dropped = found == base
    assert torch.equal(found[~dropped], rescaled[~dropped])
    assert 700 < int(dropped.sum()) < 800


def test_the_mean_over_many_masks_is_the_tuned_checkpoint() -> None:
    tuned, base = random(4, seed=0), random(4, seed=1)
    drawn = torch.stack([values(dare(0.5, seed=seed), tuned, base=base) for seed in range(2000)])
    standard_error = drawn.std(0) / 2000**0.5
    assert ((drawn.mean(0) - tuned).abs() < 4 * standard_error).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dare_that_drops_nothing_is_tuned_bit_for_bit(dtype: torch.dtype) -> None:
    tuned = random(4, seed=0, dtype=dtype)
    assert torch.equal(values(dare(0.0), tuned, base=random(4, seed=1, dtype=dtype)), tuned)


def test_masks_depend_on_seed_parameter_and_term_and_on_nothing_else() -> None:
    part = Slice("w", 0, 0, 500)
    ones, zeros = torch.ones(500), torch.zeros(500)

    def mask(edit: Dare, name: str = "w") -> Tensor:
        return edit.values(torch.ones(500), {"base": {name: zeros}, "other": {name: ones}}, {})

    first = mask(dare(0.5, target=part))
    assert torch.equal(first, mask(dare(0.5, target=part)))
    assert not torch.equal(first, mask(dare(0.5, target=part, seed=1)))
    assert not torch.equal(first, mask(dare(0.5, target=Slice("v", 0, 0, 500)), "v"))
    both = mask(dare(0.5, target=part, terms=(("self", 1.0), ("other", 1.0))))
    assert set(both.tolist()) == {0.0, 2.0, 4.0}


def test_a_slice_has_the_mask_of_its_parameter() -> None:
    tuned, base = random(40, 6, seed=0), random(40, 6, seed=1)
    whole = values(dare(0.5, target=Slice("w", 0, 0, 40)), tuned, base=base)
    assert torch.equal(values(dare(0.5, target=Slice("w", 1, 2, 5)), tuned[:, 2:5], base=base), whole[:, 2:5])


def test_two_dropped_deltas_are_added_with_their_scales() -> None:
    tuned, other, base = (random(300, seed=seed) for seed in range(3))
    part = Slice("w", 0, 0, 300)
    both = values(dare(0.5, target=part, terms=(("self", 0.4), ("other", 0.6))), tuned, other=other, base=base)
    alone = values(dare(0.5, target=part, terms=(("self", 0.4),)), tuned, base=base)
    second = values(dare(0.5, target=part, terms=(("base", 1.0), ("other", 0.6))), tuned, other=other, base=base)
    torch.testing.assert_close(both - base, alone - base + second - base)


# ---------------------------------------------------------------------------------------------------------------- TIES


def ties(*models: str, keep: float = 1.0, scale: float = 1.0, size: int = 4) -> Ties:
    return Ties(target=Slice("w", 0, 0, size), base="base", models=models, keep=keep, scale=scale)


def test_ties_trims_elects_a_sign_and_averages_those_that_agree() -> None:
    # deltas: a = 4, -3, 1, 2; b = 2, 5, -1, 0; the larger half of each: a keeps 4, -3; b keeps 2, 5
    # signs of 4 + 2, -3 + 5, 0, 0: +, +, none, none; means: (4 + 2) / 2, 5, -, -
    found = values(ties("self", "b", keep=0.5), [5.0, -2.0, 2.0, 3.0], b=[3.0, 6.0, 0.0, 1.0], base=BASE)
    assert found.tolist() == [4.0, 6.0, 1.0, 1.0]
    half = values(ties("self", "b", keep=0.5, scale=0.5), [5.0, -2.0, 2.0, 3.0], b=[3.0, 6.0, 0.0, 1.0], base=BASE)
    assert half.tolist() == [2.5, 3.5, 1.0, 1.0]


def test_a_tie_of_signs_leaves_the_base_and_a_zero_is_no_vote() -> None:
    # deltas: 2, 1, 0, 0 and -2, 0, 3, 0
    assert values(ties("self", "b"), [3.0, 2.0, 1.0, 1.0], b=[-1.0, 1.0, 4.0, 1.0], base=BASE).tolist() == [1.0, 2.0, 4.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_of_one_model_that_keeps_all_is_that_model_bit_for_bit(dtype: torch.dtype) -> None:
    tuned, base = random(4, seed=0, dtype=dtype), random(4, seed=1, dtype=dtype)
    tuned[0], base[0] = 1e-6, 100.0  # base + (tuned - base) would lose it
    assert torch.equal(values(ties("self"), tuned, base=base), tuned)


def test_ties_of_one_model_keeps_the_largest_changes_alone() -> None:
    assert values(ties("self", keep=0.25), [2.0, 1.5, 4.0, 0.0], base=BASE).tolist() == [1.0, 1.0, 4.0, 1.0]


def test_ties_that_keeps_less_than_half_an_element_is_the_base() -> None:
    assert values(ties("self", keep=0.1), [2.0, 1.5, 4.0, 0.0], base=BASE).tolist() == BASE


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 3), keep=st.floats(0.05, 1), scale=st.floats(0.1, 2), seed=st.integers(0, 99))
def test_ties_equals_its_definition_element_by_element(count: int, keep: float, scale: float, seed: int) -> None:
    tensors, base = [random(60, seed=seed + 1 + place) for place in range(count)], random(60, seed=seed)
    names = ["self", "b", "c"][:count]
    found = values(ties(*names, keep=keep, scale=scale, size=60), tensors[0], base=base, **dict(zip(names, tensors, strict=True)))
    expected = ties_by_hand([tensor.double().tolist() for tensor in tensors], base.double().tolist(), keep, scale)
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def ties_by_hand(models: list[list[float]], base: list[float], keep: float, scale: float) -> list[float]:
    trimmed = []
    for model in models:
        delta = [new - old for new, old in zip(model, base, strict=True)]
        count = int(keep * len(base) + 0.5)
        largest = sorted(range(len(base)), key=lambda place: -abs(delta[place]))[:count]
        trimmed.append([delta[place] if place in largest else 0.0 for place in range(len(base))])
    merged = []
    for place, old in enumerate(base):
        votes = [delta[place] for delta in trimmed]
        winners = [vote for vote in votes if vote * sum(votes) > 0]
        merged.append(old + scale * (sum(winners) / len(winners) if winners else 0.0))
    return merged


# ---------------------------------------------------------------------------------------------------------- everything


def test_everything_is_every_parameter_of_floating_point() -> None:
    tuned = {"a": torch.ones(2, 3), "b": torch.ones(4), "mask": torch.ones(3, dtype=torch.uint8)}
    other = {name: torch.zeros_like(tensor) for name, tensor in tuned.items()}
    patched = apply(Patch(edits=(Combine(target=EVERYTHING, terms=(("other", 1.0),)),)), tuned, {"other": other})
    assert {name: float(patched[name].sum()) for name in patched} == {"a": 0.0, "b": 0.0, "mask": 3.0}


def test_what_is_left_out_keeps_its_values() -> None:
    tuned, other = {"a": torch.ones(6, 2)}, {"a": torch.zeros(6, 2)}
    but = (Slice("a", 0, 1, 2), Slice("a", 0, 4, 6))
    patched = apply(Patch(edits=(Combine(target=EVERYTHING, terms=(("other", 1.0),), but=but),)), tuned, {"other": other})
    assert patched["a"][:, 0].tolist() == [0.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    columns = Combine(target=EVERYTHING, terms=(("other", 1.0),), but=(Slice("a", 1, 0, 1),))
    assert apply(Patch(edits=(columns,)), tuned, {"other": other})["a"][0].tolist() == [1.0, 0.0]


def test_slices_along_two_axes_cannot_be_left_out_of_one_parameter() -> None:
    edit = Combine(target=EVERYTHING, terms=(("other", 1.0),), but=(Slice("a", 0, 0, 1), Slice("a", 1, 0, 1)))
    with pytest.raises(ValueError, match="a cannot be divided along two axes at once"):
        apply(Patch(edits=(edit,)), {"a": torch.ones(2, 2)}, {"other": {"a": torch.ones(2, 2)}})
