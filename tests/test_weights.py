from __future__ import annotations

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cpt_lab.weights import (
    StoredWeights,
    check_finite,
    check_same_headers,
    check_same_shapes,
    open_weights,
    save_checkpoint,
    weights_digest,
)
from factory import tiny_checkpoint

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def test_one_file_and_many_shards_hold_the_same_weights(tmp_path: Path) -> None:
    one = open_weights(tiny_checkpoint(tmp_path / "one"))
    many = open_weights(tiny_checkpoint(tmp_path / "many", shard_size="30KB"))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert set(one) == set(many)
    assert len(one) == len(many) == 25
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_threads_that_read_at_once_get_each_the_parameter_they_asked_for(tmp_path: Path) -> None:
    """Two meet where each remembers what it has read: what was remembered last must not be given to both."""
    meeting = threading.Barrier(2)

    class Meeting(StoredWeights):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "_last" and value is not None:
                meeting.wait(timeout=10)

    values = {"first": torch.zeros(2), "second": torch.ones(2)}
    save_file(values, tmp_path / "model.safetensors")
    stored = Meeting(open_weights(tmp_path)._parameters)
    with ThreadPoolExecutor(2) as pool:
        assert [float(tensor[0]) for tensor in pool.map(stored.__getitem__, values)] == [0.0, 1.0]


def test_shapes_are_known_without_reading(tmp_path: Path) -> None:
    weights = open_weights(tiny_checkpoint(tmp_path))
    assert weights.shape("model.layers.0.mlp.down_proj.weight") == (32, 48)


def test_a_tied_output_matrix_is_no_parameter_of_its_own(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, tied=True)
    assert OUTPUT not in open_weights(folder)
    stored = load_file(folder / "model.safetensors")
    save_file(stored | {OUTPUT: stored[EMBEDDING].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    weights = open_weights(folder)
    assert OUTPUT not in weights
    with pytest.raises(KeyError):
        weights[OUTPUT]


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        open_weights(tmp_path / "nowhere")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no safetensors"):
        open_weights(tmp_path)


def test_a_folder_with_pickles_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pickled weights only \(pytorch_model.bin\).*save_pretrained"):
        open_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, shard_size="30KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        open_weights(folder)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        open_weights(tmp_path)


def test_the_digest_is_of_the_contents_and_not_of_the_place(tmp_path: Path) -> None:
    folders = [tiny_checkpoint(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, same, other = (weights_digest(folder, tmp_path / "cache") for folder in folders)
    assert first == same != other


def test_the_digest_of_an_unchanged_file_is_not_computed_again(tmp_path: Path) -> None:
    folder, cache = tiny_checkpoint(tmp_path / "model"), tmp_path / "cache"
    first = weights_digest(folder, cache)
    (entry,) = (cache / "digests").iterdir()
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"sha256": "remembered"}))
    remembered = weights_digest(folder, cache)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert remembered != first
    assert weights_digest(folder, cache) == first


def test_a_broken_or_unwritable_cache_only_costs_time(tmp_path: Path) -> None:
    folder, cache = tiny_checkpoint(tmp_path / "model"), tmp_path / "cache"
    first = weights_digest(folder, cache)
    for entry in (cache / "digests").iterdir():
        entry.write_text("{")
    assert weights_digest(folder, cache) == first
    (tmp_path / "file").write_text("in the way")
    assert weights_digest(folder, tmp_path / "file") == first


def test_the_first_parameter_that_differs_is_named(tmp_path: Path) -> None:
    shared = tiny_checkpoint(tmp_path / "gqa", num_kv_heads=2)
    whole = tiny_checkpoint(tmp_path / "mha")
    with pytest.raises(ValueError, match=r"layers.0.self_attn.k_norm.weight is \(16,\) in tuned and \(32,\) in base"):
        check_same_shapes(open_weights(shared), open_weights(whole))
    with pytest.raises(ValueError, match=r"layers.0.self_attn.k_norm.weight is \(16,\) in tuned and \(32,\) in base"):
        check_same_headers(shared, whole)


def test_a_parameter_that_one_side_lacks_is_named(tmp_path: Path) -> None:
    olmo, llama = tiny_checkpoint(tmp_path / "olmo"), tiny_checkpoint(tmp_path / "llama", family="llama")
    with pytest.raises(ValueError, match=r"layers.0.input_layernorm.weight is missing in tuned"):
        check_same_headers(olmo, llama)
    check_same_headers(olmo, tiny_checkpoint(tmp_path / "again", seed=3, shard_size="30KB"))


def test_values_that_are_not_finite_are_counted_and_named() -> None:
    weights = {"fine": torch.ones(4), "broken": torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])}
    with pytest.raises(ValueError, match="tuned has 3 values in broken"):
        check_finite(weights, "tuned")
    check_finite({"fine": weights["fine"]}, "tuned")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found_wherever_it_stands(value: float, dtype: torch.dtype) -> None:
    for place in range(0, 1000, 37):
        values = torch.linspace(-3, 3, 1000).to(dtype)
        values[place] = value
        with pytest.raises(ValueError, match="tuned has 1 values in broken"):
            check_finite({"broken": values}, "tuned")


def test_whole_numbers_and_no_numbers_are_finite() -> None:
    check_finite({"mask": torch.tensor([True]), "positions": torch.arange(3), "empty": torch.empty(0)}, "tuned")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_checkpoint_loads_and_has_the_layout_of_its_model(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    like = tiny_checkpoint(tmp_path / "like", tied=tied, dtype=dtype, tokenizer=True, shard_size="30KB")
    weights = {name: tensor + 1 for name, tensor in open_weights(like).items()}
    save_checkpoint(weights, like, tmp_path / "out")
    assert sorted(path.name for path in like.iterdir()) == sorted(path.name for path in (tmp_path / "out").iterdir())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = dict(model.named_parameters())
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight or not tied
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("12").input_ids == AutoTokenizer.from_pretrained(like)("12").input_ids


def test_the_records_of_how_a_checkpoint_came_about_stay_with_it(tmp_path: Path) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    plain = {path.name for path in like.iterdir()}
    for record in ("training.json", "metrics.jsonl", "commit.json", "patch.json"):
        (like / record).write_text("{}")
    save_checkpoint(open_weights(like), like, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == plain


def test_a_copy_of_a_checkpoint_has_the_same_digest(tmp_path: Path) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    save_checkpoint(open_weights(like), like, tmp_path / "out")
    assert weights_digest(like, tmp_path / "cache") == weights_digest(tmp_path / "out", tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(OUTPUT), "lm_head.weight is missing"),
        (lambda weights: weights.update(extra=torch.ones(1)), "extra is unknown"),
        (lambda weights: weights.update({OUTPUT: weights[OUTPUT].half()}), "lm_head.weight is torch.float16"),
        (lambda weights: weights.update({OUTPUT: weights[OUTPUT][1:]}), r"lm_head.weight is torch.float32 \(319, 32\)"),
    ],
)
def test_weights_that_do_not_fit_the_layout_leave_nothing_on_disk(tmp_path: Path, change: object, message: str) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    weights = dict(open_weights(like))
    assert callable(change)
    change(weights)
    with pytest.raises(ValueError, match=message):
        save_checkpoint(weights, like, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like"]


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    with pytest.raises(ValueError, match="is not empty"):
        save_checkpoint(open_weights(like), like, like)
    (tmp_path / "out").mkdir()
    save_checkpoint(open_weights(like), like, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


# ------------------------------------------------------------------------------------------------- files as they come


def with_header(path: Path, header: dict[str, Any], content: bytes, *, padding: int = 0) -> None:
    text = json.dumps(header).encode() + b" " * padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def test_a_tensor_that_an_old_writer_did_not_align_is_read(tmp_path: Path) -> None:
    values = torch.arange(6, dtype=torch.float32)
    header = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    for padding in range(4):
        with_header(tmp_path / "model.safetensors", header, values.numpy().tobytes(), padding=padding)
        assert torch.equal(open_weights(tmp_path)["a"], values.view(2, 3))


def test_tensors_without_axes_or_elements_are_read_and_written(tmp_path: Path) -> None:
    like = tmp_path / "like"
    like.mkdir()
    tensors = {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "flags": torch.tensor([True, False, True])}
    save_file(tensors, like / "model.safetensors", metadata={"format": "pt"})
    save_checkpoint(open_weights(like), like, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (like / "model.safetensors").read_bytes()
    assert all(torch.equal(open_weights(tmp_path / "out")[name], tensor) for name, tensor in tensors.items())


def test_a_dtype_that_nobody_computes_with_is_refused(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    with_header(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(ValueError, match=r"a in .*model.safetensors is stored as F8_E4M3.*use a checkpoint in F64, F32, F16, BF16"):
        open_weights(tmp_path)


def test_a_second_copy_of_all_weights_beside_the_file_that_transformers_loads_is_left_alone(tmp_path: Path) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    save_file({"tok_embeddings.weight": torch.ones(2)}, like / "consolidated.safetensors")
    assert len(open_weights(like)) == 25
    save_checkpoint(open_weights(like), like, tmp_path / "out")
    assert not (tmp_path / "out" / "consolidated.safetensors").exists()


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path: Path) -> None:
    before = (tiny_checkpoint(tmp_path) / "model.safetensors").read_bytes()
    open_weights(tmp_path)[EMBEDDING].zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_weights_are_asked_for_one_by_one_in_the_order_of_the_file(tmp_path: Path) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    stored, asked = open_weights(like), []

    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return stored[name]

    save_checkpoint(Watched(dict.fromkeys(stored, torch.empty(0))), like, tmp_path / "out")
    assert asked == list(stored)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (like / "model.safetensors").read_bytes()


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = tiny_checkpoint(tmp_path / "like")
    needed = sum(path.stat().st_size for path in like.iterdir())
    free = [1000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    with pytest.raises(ValueError, match=r"needs [\d,]+ bytes and .* has 1,000 free: free some"):
        save_checkpoint(open_weights(like), like, tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["like"]
    free[0] = needed
    save_checkpoint(open_weights(like), like, tmp_path / "deep" / "out")


@pytest.mark.parametrize("shard_size", ["5GB", "30KB"])
def test_a_checkpoint_with_fewer_layers_loads(shard_size: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    like = tiny_checkpoint(tmp_path / "like", num_layers=3, shard_size=shard_size)
    shallow = tiny_checkpoint(tmp_path / "shallow", num_layers=2)
    weights = {name: tensor for name, tensor in open_weights(like).items() if ".layers.2." not in name}
    with pytest.raises(ValueError, match=r"layers.2.* is missing"):
        save_checkpoint(weights, like, tmp_path / "out")
    save_checkpoint(weights, like, tmp_path / "out", config={"num_hidden_layers": 2})
    model, expected = (AutoModelForCausalLM.from_pretrained(folder).config for folder in (tmp_path / "out", shallow))
    assert model.num_hidden_layers == expected.num_hidden_layers == 2
    again = open_weights(tmp_path / "out")
    assert set(again) == set(weights) == set(open_weights(shallow))
    assert all(torch.equal(again[name], weights[name]) for name in weights)
