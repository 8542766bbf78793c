from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cpt_lab.architecture import Slice, head_slices
from cpt_lab.edits import Copy, SliceEdit, narrow
from cpt_lab.patch import LiveModel, Patch, apply
from cpt_lab.weights import open_weights, save_checkpoint
from factory import tiny_checkpoint, tiny_shape

SHAPE = tiny_shape(num_kv_heads=2)
EXAMPLES = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), unique=True, max_size=8)
SLICES = st.builds(
    lambda name, axis, start, length: Slice(f"model.layers.0.self_attn.{name}_proj.weight", axis, start, start + length),
    *(st.sampled_from("qo"), st.integers(0, 1), st.integers(0, 24), st.integers(0, 8)),
)
PATCHES = st.lists(st.builds(Copy, target=SLICES, source=st.sampled_from(["base", "other"])), max_size=6).map(
    lambda edits: Patch(edits=tuple(edits))
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_checkpoint(root / name, seed=seed, num_kv_heads=2) for seed, name in enumerate(["tuned", "base", "other"])}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]) -> Callable[[], LiveModel]:
    return lambda: live(folders["tuned"], {name: folders[name] for name in ("base", "other")})


def live(folder: Path, sources: Mapping[str, Path], dtype: torch.dtype | str = "auto") -> LiveModel:
    from transformers import AutoModelForCausalLM

    return LiveModel(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), folder, sources)


def of_heads(heads: list[tuple[int, int]], source: str = "base") -> Patch:
    return Patch(edits=tuple(Copy(target=part, source=source) for head in heads for part in head_slices(SHAPE, *head)))


def bits(model: LiveModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.model.named_parameters()}


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def opened(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: open_weights(folder) for name, folder in folders.items()}


@EXAMPLES
@given(patches=st.lists(PATCHES, min_size=1, max_size=4))
def test_a_live_model_that_took_any_patches_equals_the_mapping_of_the_last_and_its_own_bits_come_back(
    patches: list[Patch], folders: dict[str, Path], load: Callable[[], LiveModel]
) -> None:
    model, weights = load(), opened(folders)
    for patch in patches:
        model.set(patch)
        assert model.patch == patch
        assert equal(bits(model), apply(patch, weights["tuned"], weights))
    model.reset()
    assert equal(bits(model), weights["tuned"])


@EXAMPLES
@given(heads=HEADS, again=st.randoms())
def test_the_order_of_the_heads_does_not_matter(heads: list[tuple[int, int]], again: Any, folders: dict[str, Path]) -> None:
    weights = opened(folders)
    shuffled = again.sample(heads, len(heads))
    assert equal(apply(of_heads(heads), weights["tuned"], weights), apply(of_heads(shuffled), weights["tuned"], weights))


@EXAMPLES
@given(patch=PATCHES)
def test_a_patch_survives_json_and_keeps_its_digest(patch: Patch) -> None:
    again = Patch.model_validate_json(patch.model_dump_json())
    assert again == patch
    assert again.digest() == patch.digest()


def test_different_patches_have_different_digests() -> None:
    patches = [Patch(), of_heads([(0, 0)]), of_heads([(0, 1)]), of_heads([(0, 0)], "other")]
    assert len({patch.digest() for patch in patches}) == 4


@EXAMPLES
@given(first=PATCHES, second=PATCHES)
def test_a_patch_then_another_is_both_applied_in_turn(first: Patch, second: Patch, folders: dict[str, Path]) -> None:
    weights = opened(folders)
    in_turn = apply(second, apply(first, weights["tuned"], weights), weights)
    assert equal(apply(first.then(second), weights["tuned"], weights), in_turn)


def test_untouched_parameters_are_shared_and_the_input_is_not_changed(folders: dict[str, Path]) -> None:
    tuned = dict(open_weights(folders["tuned"]))
    before = {name: tensor.clone() for name, tensor in tuned.items()}
    patched = apply(of_heads([(0, 1)]), tuned, opened(folders))
    edited = {part.parameter for part in head_slices(SHAPE, 0, 1)}
    assert all(patched[name] is tuned[name] for name in tuned if name not in edited)
    assert all(not torch.equal(patched[name], before[name]) for name in edited)
    assert equal(tuned, before)


def test_going_from_one_point_to_the_next_writes_only_the_difference(load: Callable[[], LiveModel]) -> None:
    model = load()
    model.set(of_heads([(0, 0), (1, 1)]))
    versions = {name: tensor._version for name, tensor in model.model.named_parameters()}
    model.set(of_heads([(0, 0), (1, 1), (1, 3)]))
    written = {name for name, tensor in model.model.named_parameters() if tensor._version != versions[name]}
    assert written == {part.parameter for part in head_slices(SHAPE, 1, 3)}


def test_the_live_model_and_the_saved_file_have_the_same_bits(
    folders: dict[str, Path], load: Callable[[], LiveModel], tmp_path: Path
) -> None:
    patch, weights, model = of_heads([(0, 2), (0, 3), (1, 0)]), opened(folders), load()
    model.set(patch)
    save_checkpoint(apply(patch, weights["tuned"], weights), folders["tuned"], tmp_path / "out")
    assert equal(bits(model), open_weights(tmp_path / "out"))


def test_a_live_model_never_writes_to_its_files(folders: dict[str, Path], load: Callable[[], LiveModel]) -> None:
    before = {name: (folder / "model.safetensors").read_bytes() for name, folder in folders.items()}
    load().set(of_heads([(0, 0), (1, 3)]))
    assert {name: (folder / "model.safetensors").read_bytes() for name, folder in folders.items()} == before


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16])
def test_a_model_loaded_in_another_dtype_equals_the_saved_patch_loaded_in_it(
    stored: torch.dtype, loaded: torch.dtype, tmp_path: Path
) -> None:
    tuned, base = (tiny_checkpoint(tmp_path / name, seed=seed, dtype=stored) for seed, name in enumerate(["tuned", "base"]))
    patch = Patch(edits=tuple(Copy(target=part, source="base") for part in head_slices(tiny_shape(), 1, 2)))
    model = live(tuned, {"base": base}, loaded)
    own = bits(model)
    model.set(patch)
    save_checkpoint(apply(patch, open_weights(tuned), {"base": open_weights(base)}), tuned, tmp_path / "out")
    assert equal(bits(model), bits(live(tmp_path / "out", {}, loaded)))
    model.reset()
    assert equal(bits(model), own)


def test_tied_embeddings_stay_tied_in_a_patched_model(tmp_path: Path) -> None:
    tuned, base = (tiny_checkpoint(tmp_path / name, seed=seed, tied=True) for seed, name in enumerate(["tuned", "base"]))
    model = live(tuned, {"base": base})
    patch = Patch(edits=(Copy(target=Slice("model.embed_tokens.weight", 0, 3, 9), source="base"),))
    model.set(patch)
    assert torch.equal(
        model.model.lm_head.weight, apply(patch, open_weights(tuned), {"base": open_weights(base)})["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Copy(target=Slice("nowhere", 0, 0, 1), source="base"), "nowhere is not a parameter"),
        (Copy(target=Slice("lm_head.weight", 0, 319, 321), source="base"), "320 entries along axis 0, not 321"),
        (Copy(target=Slice("lm_head.weight", 0, 0, 1), source="bass"), "reads from 'bass', but its sources are base"),
        (Copy(target=Slice("lm_head.weight", 0, 0, 1), source="base"), "torch.bfloat16 in base and torch.float32 in the patched"),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_and_leaves_the_model_as_it_was(
    edit: Copy, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    half = tiny_checkpoint(tmp_path / "half", num_kv_heads=2, dtype=torch.bfloat16)
    tuned = open_weights(folders["tuned"])
    model = LiveModel(live(folders["tuned"], {}).model, folders["tuned"], {"base": half, "other": folders["other"]})
    patch = Patch(edits=(Copy(target=Slice("model.embed_tokens.weight", 0, 0, 5), source="other"), edit))
    with pytest.raises(ValueError, match=message):
        model.set(patch)
    assert equal(bits(model), tuned)
    assert model.patch == Patch()
    sources = {"base": open_weights(half), "other": open_weights(folders["other"])}
    with pytest.raises(ValueError, match=message):
        dict(apply(patch, tuned, sources))


def test_a_live_model_of_another_checkpoint_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    llama = tiny_checkpoint(tmp_path, family="llama")
    with pytest.raises(ValueError, match="give the folder it was loaded from"):
        LiveModel(live(folders["tuned"], {}).model, llama, {})


class Remembered(SliceEdit):
    """Twice the values of the slice, worked out once for all edits of it."""

    kind: str = "remembered"
    worked_out: ClassVar[list[Slice]] = []

    def values(self, current: Tensor, sources: Any, memo: Any) -> Tensor:  # noqa: ARG002
        if self.target not in memo:
            self.worked_out.append(self.target)
            memo[self.target] = 2 * current
        result: Tensor = memo[self.target]
        return result


def test_what_an_edit_remembers_lasts_for_all_patches_but_not_for_values_that_another_edit_made(
    folders: dict[str, Path], load: Callable[[], LiveModel]
) -> None:
    model, weights = load(), opened(folders)
    part, beside = Slice("lm_head.weight", 0, 0, 5), Slice("lm_head.weight", 0, 5, 9)
    doubled, copied, apart = Remembered(target=part), Copy(target=part, source="base"), Copy(target=beside, source="base")
    chains: list[tuple[SliceEdit, ...]] = [(doubled,), (copied, doubled), (apart,), (doubled, apart), (doubled, copied)]
    for edits in chains:
        patch = Patch.model_construct(edits=edits)
        model.set(patch)
        assert equal(bits(model), apply(patch, weights["tuned"], weights)), [edit.kind for edit in edits]
    Remembered.worked_out.clear()
    model.set(Patch.model_construct(edits=(doubled, apart)))
    assert Remembered.worked_out == []


def test_a_copy_reads_the_checkpoint_that_its_name_means_now(folders: dict[str, Path], load: Callable[[], LiveModel]) -> None:
    model, weights, patch = load(), opened(folders), of_heads([(0, 0), (1, 3)])
    for meant in ("base", "other", "other", "base"):
        model.read_from({"base": folders[meant]})
        model.set(patch)
        assert equal(bits(model), apply(patch, weights["tuned"], {"base": weights[meant]}))
    model.set(of_heads([(0, 1)], "other"))  # a name of before, given when the model was made
    assert equal(bits(model), apply(of_heads([(0, 1)], "other"), weights["tuned"], weights))
    model.reset()
    assert equal(bits(model), weights["tuned"])


def test_a_source_of_another_dtype_by_a_known_name_is_refused(folders: dict[str, Path], load: Callable[[], LiveModel]) -> None:
    model = load()
    model.set(of_heads([(0, 0)]))
    model.read_from({"base": {name: tensor.bfloat16() for name, tensor in open_weights(folders["base"]).items()}})
    with pytest.raises(ValueError, match=r"torch\.bfloat16 in base"):
        model.set(of_heads([(0, 0)]))
    assert equal(bits(model), open_weights(folders["tuned"]))


def test_sources_are_opened_when_they_are_first_needed(folders: dict[str, Path]) -> None:
    model = live(folders["tuned"], {"base": folders["base"], "missing": folders["base"] / "nowhere"})
    model.set(of_heads([(0, 0)]))
    assert torch.equal(
        narrow(dict(model.model.named_parameters()), head_slices(SHAPE, 0, 0)[0]),
        narrow(open_weights(folders["base"]), head_slices(SHAPE, 0, 0)[0]),
    )
