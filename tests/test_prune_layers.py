"""Layers taken out of a mapping, of a checkpoint on disk and of a live model: one model in all three, and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from compositions import points
from cpt_lab.architecture import head_slices
from cpt_lab.checkpoints import materialize
from cpt_lab.edits import Copy
from cpt_lab.families import FAMILIES, family
from cpt_lab.interventions import PruneLayers, parse
from cpt_lab.interventions.prune_layers import FirstLayers, Layers, by_mean_place, unprotected
from cpt_lab.layers import LayerDrop, config_changes
from cpt_lab.patch import LiveModel, Patch, apply
from cpt_lab.specs import Checkpoint, Evaluation, Patched, Ranking, TopOf
from cpt_lab.tensor_edits import EVERYTHING, Combine
from cpt_lab.weights import open_weights
from factory import each_family, folder_spec, tiny_checkpoint, tiny_config, tiny_model, tiny_shape, workspace

NUM_LAYERS = 4
TOKENS = torch.arange(2, 22).unsqueeze(0)
SETS = st.sets(st.integers(0, NUM_LAYERS - 1), max_size=NUM_LAYERS - 1)
EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPE = tiny_shape(num_layers=NUM_LAYERS)


def prune(*layers: int) -> PruneLayers:
    return PruneLayers(select=Layers(layers=layers))


def of(name: str, *layers: int) -> Patch:
    """The patch that takes layers out of a model of a family."""
    return prune(*layers).patch(tiny_shape(name, num_layers=NUM_LAYERS))


def bits(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def equal(left: Any, right: Any) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def generated(model: Any) -> list[int]:
    """What a model says with its cache of keys and values in use."""
    answer = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=6, do_sample=False, pad_token_id=1)
    return answer[0].tolist()  # type: ignore[no-any-return]


def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def on_disk(folder: Path, like: Path, name: str, *layers: int) -> Path:
    """The checkpoint that materialising the pruned model writes."""
    shape = tiny_shape(name, num_layers=NUM_LAYERS)
    work = workspace(folder)
    materialize(Patched(tuned=folder_spec(like, shape), interventions=(prune(*layers),)), work, tuned=like, sources={})
    return work.product


# ----------------------------------------------------------------------------------------------------- one model in three


@pytest.mark.parametrize("name", each_family(FAMILIES))
def test_live_and_on_disk_are_one_model_in_every_family(name: str, tmp_path: Path) -> None:
    tuned = tiny_checkpoint(tmp_path / "tuned", family=name, num_layers=NUM_LAYERS)
    whole = loaded(tuned)
    before, said = logits(whole), generated(whole)
    live = LiveModel(whole, tuned, {})
    live.set(of(name, 0, 2))
    stored = loaded(on_disk(tmp_path / "out", tuned, name, 0, 2))
    assert equal(bits(whole), bits(stored))
    assert torch.equal(logits(whole), logits(stored))
    assert generated(whole) == generated(stored)
    assert not torch.equal(logits(whole), before)
    live.reset()
    assert torch.equal(logits(whole), before)
    assert generated(whole) == said


@pytest.mark.parametrize("name", each_family(FAMILIES))
def test_pruning_equals_skipping_the_layers(name: str, tmp_path: Path) -> None:
    tuned = tiny_checkpoint(tmp_path / "tuned", family=name, num_layers=NUM_LAYERS)
    shorter, skipping = loaded(tuned), loaded(tuned)
    LiveModel(shorter, tuned, {}).set(of(name, 1, 3))
    prefix = (family(name).prefix + family(name).layer).split(".{layer}")[0]
    for layer in (1, 3):
        skipping.get_submodule(f"{prefix}.{layer}").register_forward_hook(lambda _, inputs, output: _like(output, inputs[0]))
    with torch.no_grad():
        expected = skipping(TOKENS, use_cache=False).logits
    torch.testing.assert_close(logits(shorter), expected, rtol=1e-5, atol=1e-5)


def _like(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@EXAMPLES
@given(layers=SETS)
def test_the_mapping_has_the_layers_that_stay_renumbered_and_the_rest_as_it_is(layers: set[int]) -> None:
    weights = bits(tiny_model(SHAPE))
    found = apply(of("olmo2", *layers), weights, {})
    kept = [layer for layer in range(NUM_LAYERS) if layer not in layers]
    expected = {name: tensor for name, tensor in weights.items() if ".layers." not in name}
    for new, old in enumerate(kept):
        inside = {name: tensor for name, tensor in weights.items() if f".layers.{old}." in name}
        expected |= {name.replace(f".layers.{old}.", f".layers.{new}."): tensor for name, tensor in inside.items()}
    assert sorted(found) == sorted(expected)
    assert all(found[name] is expected[name] for name in expected)


@EXAMPLES
@given(sets=st.lists(SETS, min_size=1, max_size=4))
def test_a_live_model_goes_from_any_layers_to_any_others_and_back(sets: list[set[int]], live: LiveModel, own: dict[str, Any]) -> None:
    for layers in sets:
        live.set(of("olmo2", *layers))
        assert equal(bits(live.model), apply(of("olmo2", *layers), own, {}))
        assert live.model.config.num_hidden_layers == NUM_LAYERS - len(layers)
        assert [layer.self_attn.layer_idx for layer in live.model.model.layers] == list(range(NUM_LAYERS - len(layers)))
    live.reset()
    assert equal(bits(live.model), own)
    assert live.model.config.num_hidden_layers == NUM_LAYERS


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    folder = tiny_checkpoint(tmp_path_factory.mktemp("models") / "tuned", num_layers=NUM_LAYERS)
    return LiveModel(loaded(folder), folder, {})


@pytest.fixture(scope="module")
def own(live: LiveModel) -> dict[str, Tensor]:
    return bits(live.model)


def test_a_sharded_checkpoint_stays_sharded_and_its_index_names_what_there_is(tmp_path: Path) -> None:
    tuned = tiny_checkpoint(tmp_path / "tuned", num_layers=NUM_LAYERS, shard_size="30KB")
    out = on_disk(tmp_path / "out", tuned, "olmo2", 1, 2)
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    assert set(index) == set(open_weights(out))
    assert {path.name for path in out.glob("*.safetensors")} == set(index.values())
    assert equal(bits(loaded(out)), apply(of("olmo2", 1, 2), open_weights(tuned), {}))


def test_only_the_count_of_layers_changes_in_the_config_of_olmo2(tmp_path: Path) -> None:
    tuned = tiny_checkpoint(tmp_path / "tuned", num_layers=NUM_LAYERS)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (tuned, on_disk(tmp_path / "out", tuned, "olmo2", 1)))
    assert {name for name in old if old[name] != new.get(name)} == {"num_hidden_layers"}
    assert new["num_hidden_layers"] == 3


def test_kinds_of_layers_follow_their_layers_even_where_the_config_leaves_them_to_transformers() -> None:
    config = tiny_config(tiny_shape("gemma2", num_layers=NUM_LAYERS))
    kinds = config.layer_types
    assert len(set(kinds)) == 2
    changes = config_changes(LayerDrop(prefix="model.layers.{layer}.", num_layers=NUM_LAYERS, layers=(0,)), config)
    assert changes == {"num_hidden_layers": 3, "layer_types": kinds[1:]}


def test_a_list_that_is_only_as_long_as_the_layers_are_many_is_left_alone() -> None:
    config = tiny_config(SHAPE)
    config.eos_token_id = list(range(NUM_LAYERS))
    drop = LayerDrop(prefix="model.layers.{layer}.", num_layers=NUM_LAYERS, layers=(0,))
    assert config_changes(drop, config) == {"num_hidden_layers": 3}


def test_attention_that_is_scaled_by_the_number_of_its_layer_cannot_be_pruned() -> None:
    config = tiny_config(tiny_shape("gpt2", num_layers=NUM_LAYERS))
    config.scale_attn_by_inverse_layer_idx = True
    drop = LayerDrop(prefix="transformer.h.{layer}.", num_layers=NUM_LAYERS, layers=(0,))
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx"):
        config_changes(drop, config)


# --------------------------------------------------------------------------------------------------------------- chains


def test_edits_of_a_chain_mean_layers_by_their_old_numbers(tmp_path: Path) -> None:
    tuned, base = (tiny_checkpoint(tmp_path / name, seed=seed, num_layers=NUM_LAYERS) for seed, name in enumerate(("tuned", "base")))
    stored = {"tuned": open_weights(tuned), "base": open_weights(base)}
    copies = Patch(edits=tuple(Copy(target=part, source="base") for part in head_slices(SHAPE, 2, 1)))
    expected = apply(of("olmo2", 0), dict(apply(copies, stored["tuned"], stored)), {})
    model = LiveModel(loaded(tuned), tuned, {"base": base})
    for chain in (copies.then(of("olmo2", 0)), of("olmo2", 0).then(copies)):
        assert equal(apply(chain, stored["tuned"], stored), expected)
        model.set(chain)
        assert equal(bits(model.model), expected)


def test_two_prunings_take_out_the_layers_of_both() -> None:
    both = of("olmo2", 0, 1).then(of("olmo2", 1, 3))
    assert both.drop is not None
    assert both.drop.kept == (2,)
    with pytest.raises(ValueError, match="all 4 layers would be pruned"):
        both.then(of("olmo2", 2))


def test_a_soup_is_pruned_after_it_is_mixed(live: LiveModel, own: dict[str, Any]) -> None:
    half = Patch(edits=(Combine(target=EVERYTHING, terms=(("self", 0.5),)),))
    live.set(half.then(of("olmo2", 1)))
    assert equal(bits(live.model), {name: 0.5 * tensor for name, tensor in apply(of("olmo2", 1), own, {}).items()})
    live.reset()
    assert equal(bits(live.model), own)


def test_a_patch_that_drops_layers_survives_json() -> None:
    patch = of("olmo2", 0, 2)
    assert Patch.model_validate_json(patch.model_dump_json()) == patch
    assert patch.digest() != of("olmo2", 0, 1).digest()


def test_a_patch_for_a_deeper_model_is_refused_and_leaves_the_model_as_it_was(live: LiveModel, own: dict[str, Any]) -> None:
    deeper = prune(0).patch(tiny_shape(num_layers=6))
    with pytest.raises(ValueError, match="the model has 4 layers and the patch is for one with 6"):
        live.set(deeper)
    assert equal(bits(live.model), own)


# --------------------------------------------------------------------------------------------------------------- choices


class Study:
    def checkpoint(self, name: str) -> Checkpoint:
        return folder_spec(Path(name), SHAPE)

    def ranking(self, direction: str) -> Ranking:
        return Ranking(criterion="random", direction=direction, shape=SHAPE, seed=0)  # type: ignore[arg-type]


def chosen(**given: Any) -> PruneLayers:
    defaults = {"by": "ranking", "direction": "ascending", "seed": 0, "protect": 0, "layers": None}
    return PruneLayers.chosen(PruneLayers.SETTINGS.model_validate({**defaults, **given}), Study())


def layers_of(change: PruneLayers) -> tuple[int, ...]:
    assert isinstance(change.select, Layers)
    return change.select.layers


def test_an_explicit_list_is_a_set() -> None:
    assert chosen(layers=[3, 1, 1]) == prune(1, 3)


def test_last_n_are_the_last_that_are_not_protected() -> None:
    assert layers_of(chosen(by="last_n", count=2)) == (2, 3)
    assert layers_of(chosen(by="last_n", count=1, protect=1)) == (2,)


def test_random_layers_depend_on_the_seed_alone_and_more_of_them_hold_the_fewer() -> None:
    draws = [layers_of(chosen(by="random", count=2, seed=seed)) for seed in range(20)]
    assert len(set(draws)) == 6  # all pairs of four layers
    assert draws == [layers_of(chosen(by="random", count=2, seed=seed)) for seed in range(20)]
    assert all(set(layers_of(chosen(by="random", count=1, seed=seed))) <= set(draws[seed]) for seed in range(20))
    assert {layers_of(chosen(by="random", count=1, seed=seed, protect=1)) for seed in range(20)} == {(1,), (2,)}


def test_a_ranking_of_heads_ranks_layers_by_the_mean_place_of_their_heads() -> None:
    order = ((2, 0), (0, 0), (2, 1), (1, 1), (1, 0), (0, 1))  # mean places 3, 3.5, 1
    assert by_mean_place(order) == [2, 0, 1]
    assert by_mean_place(((1, 0), (0, 0), (0, 1), (1, 1))) == [0, 1]  # 1.5 both
    assert by_mean_place(((3, 0), (0, 0), (2, 0))) == [3, 0, 2]


def test_a_ranking_is_settled_by_its_order_with_the_first_and_last_layers_protected() -> None:
    order = tuple((layer, head) for layer in (3, 1, 0, 2) for head in range(SHAPE.num_heads))
    assert layers_of(chosen(count=2).with_ranking(order)) == (1, 3)
    assert layers_of(chosen(count=1, protect=1).with_ranking(order)) == (1,)
    assert chosen(count=2).rankings() == (Study().ranking("ascending"),)
    with pytest.raises(ValueError, match="needs the order of its ranking first"):
        chosen(count=2).patch(SHAPE)


@given(num_layers=st.integers(1, 12), protect=st.integers(0, 14))
def test_protection_leaves_the_middle(num_layers: int, protect: int) -> None:
    expected = [layer for layer in range(num_layers) if layer >= protect and layer < num_layers - protect]
    assert unprotected(num_layers, protect) == expected


def test_pruning_nothing_settles_to_nothing() -> None:
    assert chosen(count=0).settled() is None
    assert chosen(layers=[]).settled() is None
    assert chosen(count=1).settled() == chosen(count=1)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({}, "got neither count nor layers: set intervention.count=4"),
        ({"count": 1, "layers": [0]}, "got both count and layers"),
        ({"layers": [4]}, "there is no layer 4 to prune: the model has layers 0 to 3"),
        ({"layers": [0, 1, 2, 3]}, "all 4 layers would be pruned"),
        ({"count": 4}, "count is 4, but 3 of 4 layers may go with protect=0"),
        ({"count": 3, "protect": 1}, "count is 3, but 2 of 4 layers may go with protect=1"),
        ({"count": -1}, "greater than or equal to 0"),
    ],
)
def test_a_choice_that_leaves_no_model_or_means_none_is_refused(given_settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(**given_settings)


def test_a_pruning_comes_back_from_what_was_dumped() -> None:
    for change in (chosen(count=2, protect=1), chosen(layers=[1])):
        assert parse(change.model_dump()) == change


def test_the_command_line_prunes_by_the_chosen_criterion() -> None:
    (point,) = points("intervention=prune_layers", "criterion=random", "intervention.count=2")
    assert isinstance(point.spec, Evaluation)
    assert isinstance(point.spec.checkpoint, Patched)
    (change,) = point.spec.checkpoint.interventions
    assert isinstance(change, PruneLayers)
    assert isinstance(change.select, FirstLayers)
    assert (change.select.count, change.select.ranking.criterion, change.select.ranking.direction) == (2, "random", "ascending")
    assert not isinstance(change.select, TopOf)
