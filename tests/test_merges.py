"""Soup, task arithmetic, DARE and TIES as interventions: what they may say, their limits, one set of bits live and on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_lab.architecture import head_slices, role_slices
from cpt_lab.edits import Copy
from cpt_lab.interventions import Dare, Rewind, Soup, TaskArithmetic, Ties, parse
from cpt_lab.patch import LiveModel, Patch, apply
from cpt_lab.specs import Checkpoint, FolderCheckpoint, Intervention, key
from cpt_lab.tensor_edits import EVERYTHING, Combine
from cpt_lab.tensor_edits import Dare as DareEdit
from cpt_lab.tensor_edits import Ties as TiesEdit
from cpt_lab.weights import open_weights, save_checkpoint
from factory import folder_spec, tiny_checkpoint, tiny_shape

SHAPE = tiny_shape(num_kv_heads=2)
NAMES = ("tuned", "base", "reference", "inst")
SHARES = st.floats(-1, 2, allow_subnormal=False)
EXAMPLES = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TERMS = st.lists(st.tuples(st.sampled_from(["self", "base", "inst"]), SHARES), min_size=1, max_size=3).map(tuple)
WHOLE_MODEL = st.one_of(
    st.builds(Combine, target=st.just(EVERYTHING), terms=TERMS, but=st.sampled_from([(), role_slices(SHAPE, 0, "o")])),
    st.builds(
        DareEdit, target=st.just(EVERYTHING), base=st.just("base"), terms=TERMS, drop=st.sampled_from([0.0, 0.5]), seed=st.integers(0, 3)
    ),
    st.builds(
        TiesEdit,
        target=st.just(EVERYTHING),
        base=st.just("base"),
        models=st.lists(st.sampled_from(["self", "inst"]), min_size=1, max_size=2).map(tuple),
        keep=st.floats(0.1, 1),
        scale=SHARES,
    ),
)
REWINDS = st.builds(Copy, target=st.sampled_from(head_slices(SHAPE, 1, 2)), source=st.just("base"))
PATCHES = st.lists(st.one_of(WHOLE_MODEL, REWINDS), min_size=1, max_size=3).map(lambda edits: Patch(edits=tuple(edits)))


class Study:
    """What interventions may refer to, with a folder for every name."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders

    def checkpoint(self, name: str) -> Checkpoint:
        return folder_spec(self.folders[name], SHAPE)

    def ranking(self, direction: str) -> Any:
        raise AssertionError(f"a merge asked for a ranking ({direction})")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_checkpoint(root / name, seed=seed, num_kv_heads=2) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def stored(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: open_weights(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> LiveModel:
    from transformers import AutoModelForCausalLM

    return LiveModel(AutoModelForCausalLM.from_pretrained(folders["tuned"]), folders["tuned"], folders)


@pytest.fixture(scope="module")
def choose(folders: dict[str, Path]) -> Callable[..., Any]:
    """An intervention as its file in conf and some settings choose it."""

    def chosen(kind: type[Intervention], **given: Any) -> Any:
        defaults: dict[type[Intervention], dict[str, Any]] = {
            Soup: {"with": "reference", "weights": None, "roles": None, "allow_any_sum": False},
            TaskArithmetic: {"scales": None},
            Dare: {"seed": 0, "scales": None},
            Ties: {"models": ["tuned", "reference"], "scale": 1.0},
        }
        return kind.chosen(kind.SETTINGS.model_validate({**defaults[kind], **given}), Study(folders))

    return chosen


def bits(model: LiveModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.model.named_parameters()}


def equal(left: Any, right: Any) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def patched(change: Intervention, stored: dict[str, Any]) -> Any:
    return apply(change.patch(SHAPE), stored["tuned"], {name: stored[Path(part.path).name] for name, part in folders_of(change).items()})


def folders_of(change: Intervention) -> dict[str, FolderCheckpoint]:
    found = change.sources()
    assert all(isinstance(part, FolderCheckpoint) for part in found.values())
    return found  # type: ignore[return-value]


# -------------------------------------------------------------------------------------------------------------- patches


@EXAMPLES
@given(patches=st.lists(PATCHES, min_size=1, max_size=3))
def test_a_live_model_equals_the_mapping_whatever_it_took_before_and_its_own_bits_come_back(
    patches: list[Patch], model: LiveModel, stored: dict[str, Any]
) -> None:
    for patch in patches:
        model.set(patch)
        assert equal(bits(model), apply(patch, stored["tuned"], stored))
    model.reset()
    assert equal(bits(model), stored["tuned"])


@EXAMPLES
@given(patch=PATCHES)
def test_a_patch_of_whole_models_survives_json(patch: Patch) -> None:
    again = Patch.model_validate_json(patch.model_dump_json())
    assert again == patch
    assert again.digest() == patch.digest()


@EXAMPLES
@given(patch=PATCHES, order=st.randoms())
def test_parameters_are_the_same_in_whatever_order_they_are_asked_for(patch: Patch, order: Any, stored: dict[str, Any]) -> None:
    first, second = apply(patch, stored["tuned"], stored), apply(patch, stored["tuned"], stored)
    names = list(first)
    once = {name: first[name] for name in names}
    assert equal(once, {name: second[name] for name in order.sample(names, len(names))})


@EXAMPLES
@given(patch=PATCHES)
def test_a_merge_changes_none_of_its_checkpoints(patch: Patch, stored: dict[str, Any]) -> None:
    given_weights = {name: {parameter: tensor.clone() for parameter, tensor in weights.items()} for name, weights in stored.items()}
    dict(apply(patch, given_weights["tuned"], given_weights))
    assert all(equal(given_weights[name], stored[name]) for name in stored)


def test_a_merge_is_a_few_hundred_bytes_whatever_the_model(choose: Callable[..., Any]) -> None:
    for change in (choose(Soup, weight=0.3), choose(TaskArithmetic, scale=0.5), choose(Dare, drop=0.9), choose(Ties, keep=0.2)):
        assert len(change.patch(SHAPE).model_dump_json()) < 400


# ----------------------------------------------------------------------------------------------------------------- soup


def test_a_soup_is_the_linear_interpolation_of_all_parameters(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    mixed = patched(choose(Soup, weight=0.3), stored)
    for name in mixed:
        expected = 0.7 * stored["tuned"][name].double() + 0.3 * stored["reference"][name].double()
        torch.testing.assert_close(mixed[name], expected.float(), rtol=1e-7, atol=0)


def test_the_ends_of_a_soup_are_its_checkpoints_bit_for_bit(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    assert equal(patched(choose(Soup, weight=0), stored), stored["tuned"])
    assert equal(patched(choose(Soup, weight=1), stored), stored["reference"])
    assert equal(patched(choose(Soup, weights={"inst": 1}), stored), stored["inst"])


def test_a_soup_of_three_is_their_weighted_mean(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    weights = {"tuned": 0.5, "inst": 0.3, "base": 0.2}
    mixed = patched(choose(Soup, weights=weights), stored)
    for name in mixed:
        expected = sum((weight * stored[part][name].double() for part, weight in weights.items()), torch.zeros(()).double())
        torch.testing.assert_close(mixed[name], expected.float(), rtol=1e-6, atol=1e-8)


def test_a_role_may_have_weights_of_its_own(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    mixed = patched(choose(Soup, weight=1, roles={"q": 0, "down": {"inst": 1}}), stored)
    for name in mixed:
        source = "tuned" if "q_proj" in name or "q_norm" in name else "inst" if "down_proj" in name else "reference"
        assert torch.equal(mixed[name], stored[source][name]), name


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2"])
def test_a_role_in_a_fused_matrix_is_mixed_alone(family: str) -> None:
    shape = tiny_shape(family)
    part = {"with": "reference", "weights": None, "allow_any_sum": False, "weight": 1.0, "roles": {"k": 0.0}}
    study = Study({"tuned": Path("tuned"), "reference": Path("reference")})
    study.checkpoint = lambda name: folder_spec(Path(name), shape)  # type: ignore[method-assign]
    from factory import tiny_model

    tuned, reference = (dict(tiny_model(shape, seed=seed).named_parameters()) for seed in (0, 1))
    mixed = apply(Soup.chosen(Soup.SETTINGS.model_validate(part), study).patch(shape), tuned, {"reference": reference})
    expected = {name: tensor.detach().clone() for name, tensor in reference.items()}
    for piece in (piece for layer in range(shape.num_layers) for piece in role_slices(shape, layer, "k")):
        ours, theirs = (weights[piece.parameter].narrow(piece.axis, piece.start, piece.stop - piece.start) for weights in (expected, tuned))
        ours.copy_(theirs.detach())
    assert equal(mixed, expected)


def test_weights_that_do_not_add_up_are_refused_unless_any_sum_is_allowed(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"weights of tuned, inst add up to 0\.8, not to 1: correct them, or set allow_any_sum=true"):
        choose(Soup, weights={"tuned": 0.5, "inst": 0.3})
    with pytest.raises(ValueError, match=r"roles\.q of tuned add up to 0\.5"):
        choose(Soup, weight=0.5, roles={"q": {"tuned": 0.5}})
    doubled = patched(choose(Soup, weights={"tuned": 2}, allow_any_sum=True), stored)
    assert equal(doubled, {name: 2 * tensor for name, tensor in stored["tuned"].items()})


def test_checkpoints_with_and_without_an_output_matrix_are_not_merged(folders: dict[str, Path]) -> None:
    study = Study(folders)
    tied = tiny_shape(num_kv_heads=2, tied=True)
    study.checkpoint = lambda name: folder_spec(folders[name], tied if name == "inst" else SHAPE)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="tuned has an output matrix and in inst it is the embedding"):
        Ties.chosen(Ties.SETTINGS.model_validate({"models": ["tuned", "inst"], "keep": 1, "scale": 1}), study)


def test_tenths_add_up_in_spite_of_floating_point(choose: Callable[..., Any]) -> None:
    assert 0.7 + 0.2 + 0.1 != 1
    assert choose(Soup, weights={"tuned": 0.7, "inst": 0.2, "base": 0.1})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"got no weight: set intervention\.weight=0\.5"),
        ({"weight": 0.5, "weights": {"tuned": 1}}, "got weight and weights"),
        ({"weight": float("nan")}, "finite number"),
        ({"weight": 0.5, "roles": {"qq": 0.1}}, r"unknown role of olmo2 'qq' \(did you mean q\?\)"),
    ],
)
def test_a_soup_that_means_nothing_is_refused(given: dict[str, Any], message: str, choose: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=message):
        choose(Soup, **given)


def test_a_soup_does_not_build_what_it_takes_nothing_of(choose: Callable[..., Any]) -> None:
    settled = choose(Soup, weights={"tuned": 0.5, "inst": 0.5, "base": 0}).settled()
    assert set(settled.sources()) == {"inst"}
    assert key(settled) == key(choose(Soup, weights={"tuned": 0.5, "inst": 0.5}).settled())


def test_the_names_of_checkpoints_are_no_part_of_a_soup(choose: Callable[..., Any], folders: dict[str, Path]) -> None:
    again = Study({**folders, "instructed": folders["inst"]})
    soup = choose(Soup, weights={"tuned": 0.5, "inst": 0.5})
    other = Soup.chosen(
        Soup.SETTINGS.model_validate({"with": "base", "weights": {"instructed": 0.5, "tuned": 0.5}, "roles": None, "allow_any_sum": False}),
        again,
    )
    assert key(soup) == key(other)


# ----------------------------------------------------------------------------------------- task arithmetic, DARE, TIES


def test_task_arithmetic_goes_from_the_base_through_tuned_and_beyond(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    assert equal(patched(choose(TaskArithmetic, scale=0), stored), stored["base"])
    assert equal(patched(choose(TaskArithmetic, scale=1), stored), stored["tuned"])
    beyond = patched(choose(TaskArithmetic, scales={"tuned": 1.5, "inst": -0.5}), stored)
    for name in beyond:
        base, tuned, inst = (stored[part][name].double() for part in ("base", "tuned", "inst"))
        torch.testing.assert_close(beyond[name], (base + 1.5 * (tuned - base) - 0.5 * (inst - base)).float(), rtol=1e-6, atol=1e-8)


def test_dare_that_drops_nothing_is_tuned_and_of_two_models_task_arithmetic(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    assert equal(patched(choose(Dare, drop=0), stored), stored["tuned"])
    scales = {"tuned": 0.5, "inst": 0.4}
    assert equal(patched(choose(Dare, drop=0, scales=scales), stored), patched(choose(TaskArithmetic, scales=scales), stored))


def test_dare_drops_its_share_of_every_parameter(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    dropped = patched(choose(Dare, drop=0.9), stored)
    assert sum(int((dropped[name] == stored["base"][name]).sum()) for name in dropped) / sum(map(torch.numel, dropped.values())) == (
        pytest.approx(0.9, abs=0.01)
    )


def test_ties_of_tuned_alone_that_keeps_all_is_tuned(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    assert equal(patched(choose(Ties, models=["tuned"], keep=1), stored), stored["tuned"])


def test_ties_with_a_scale_of_zero_is_the_base(choose: Callable[..., Any], stored: dict[str, Any]) -> None:
    assert equal(patched(choose(Ties, keep=0.5, scale=0), stored), stored["base"])


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (Soup, {"weight": 0}),
        (TaskArithmetic, {"scale": 1}),
        (TaskArithmetic, {"scales": {"tuned": 1, "inst": 0}}),
        (Dare, {"drop": 0}),
        (Ties, {"models": ["tuned"], "keep": 1}),
    ],
)
def test_a_merge_that_changes_nothing_settles_to_nothing(
    kind: type[Intervention], given: dict[str, Any], choose: Callable[..., Any]
) -> None:
    assert choose(kind, **given).settled() is None


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TaskArithmetic, {}, "got no scale: set intervention.scale=0.5"),
        (TaskArithmetic, {"scale": 1, "scales": {"tuned": 1}}, "got scale and scales"),
        (Dare, {"drop": 1}, "less than 1"),
        (Dare, {"drop": -0.1}, "greater than or equal to 0"),
        (Dare, {"drop": 0.5, "scales": {}}, "at least 1 item"),
        (Ties, {"keep": 0}, "greater than 0"),
        (Ties, {"keep": 1.5}, "less than or equal to 1"),
        (Ties, {"keep": 0.5, "models": []}, "at least 1 item"),
    ],
)
def test_settings_out_of_range_are_refused(
    kind: type[Intervention], given: dict[str, Any], message: str, choose: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        choose(kind, **given)


def test_merges_come_back_from_what_was_dumped(choose: Callable[..., Any]) -> None:
    soup = choose(Soup, weight=0.5, roles={"q": {"tuned": 0.2, "inst": 0.8}})
    for change in (soup, choose(TaskArithmetic, scale=0.5), choose(Dare, drop=0.9), choose(Ties, keep=0.2)):
        assert parse(change.model_dump()) == change


def test_a_chain_applies_in_order(choose: Callable[..., Any], stored: dict[str, Any], folders: dict[str, Path]) -> None:
    from cpt_lab.specs import Heads

    heads = tuple((layer, head) for layer in range(SHAPE.num_layers) for head in range(SHAPE.num_heads))
    rewind = Rewind(base=folder_spec(folders["base"], SHAPE), select=Heads(heads=heads))
    soup = choose(Soup, weight=0.5)
    first, second = rewind.patch(SHAPE).then(soup.patch(SHAPE)), soup.patch(SHAPE).then(rewind.patch(SHAPE))
    name = "model.layers.0.self_attn.q_proj.weight"
    mixed = (0.5 * stored["base"][name].double() + 0.5 * stored["reference"][name].double()).float()
    assert torch.equal(apply(first, stored["tuned"], stored)[name], mixed)
    assert torch.equal(apply(second, stored["tuned"], stored)[name], stored["base"][name])


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
def test_a_merge_of_sixteen_bits_is_the_same_live_and_on_disk(loaded: torch.dtype, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    parts = {name: tiny_checkpoint(tmp_path / name, seed=seed, dtype=torch.bfloat16) for seed, name in enumerate(("tuned", "base"))}
    patch = Patch(edits=(Combine(target=EVERYTHING, terms=(("self", 0.3), ("base", 0.7))),))
    live = LiveModel(AutoModelForCausalLM.from_pretrained(parts["tuned"], dtype=loaded), parts["tuned"], parts)
    live.set(patch)
    save_checkpoint(apply(patch, open_weights(parts["tuned"]), {"base": open_weights(parts["base"])}), parts["tuned"], tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=loaded)
    assert equal(bits(live), dict(again.named_parameters()))
