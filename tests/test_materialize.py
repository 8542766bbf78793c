"""`materialize`: one point's weights as a folder of one's own, with a card that says how it was made."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

from command_line import Answer, here, there
from cpt_lab import export, model_card
from cpt_lab.specs import HubCheckpoint, Patched, key, parse
from cpt_lab.store import Store, read_json
from cpt_lab.study import names
from cpt_lab.weights import open_weights, weights_digest
from factory import tiny_checkpoint, tiny_shape
from spec_cases import BASE, FOLDER, PRETRAINED, TUNED, rewound_heads

ONE = ("intervention=rewind", "intervention.fraction=0.5", "criterion=random")
Usage = namedtuple("Usage", "total used free")


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_folder_must_be_given(tmp_path: Path) -> None:
    assert "out=FOLDER" in here("materialize", *ONE, f"results={tmp_path}").refusal


@pytest.mark.slow
def test_a_sweep_is_refused_with_the_names_of_its_points_and_a_way_to_choose_one(tmp_path: Path) -> None:
    said = here("materialize", "+experiment=quickstart", f"results={tmp_path / 'results'}", f"out={tmp_path / 'out'}").refusal
    assert "of one point and these are 49: " in said
    assert "'fraction=0 scaled_norm_diff ascending'" in said
    assert " more; choose one by saying all that varies, as the first is " in said
    chosen = said.partition("as the first is ")[2].split()
    answer = here("plan", "+experiment=quickstart", *chosen, f"results={tmp_path / 'results'}")
    assert answer.out.startswith("study quickstart: 1 points")
    assert not (tmp_path / "out").exists()


def test_few_points_are_named_all(tmp_path: Path) -> None:
    words = ("intervention=rewind", "intervention.fraction=0,0.5", "criterion=random", f"out={tmp_path / 'out'}")
    said = here("materialize", *words, f"results={tmp_path}").refusal
    assert "these are 2: 'fraction=0', 'fraction=0.5'; " in said
    assert said.endswith("as the first is intervention.fraction=0")


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    said = here("materialize", *ONE, f"results={tmp_path / 'results'}", f"out={tmp_path / 'out'}").refusal
    assert said == f"out={tmp_path / 'out'} is not empty: give a new folder"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = here("materialize", *ONE, f"results={tmp_path / 'results'}", f"out={tmp_path / 'file' / 'out'}").refusal
    assert f"for {tmp_path / 'file'} is a file" in said


def test_a_disk_that_is_too_small_is_refused_with_the_bytes_needed_and_free_before_anything_is_built(tmp_path: Path) -> None:
    with mock.patch.object(shutil, "disk_usage", return_value=Usage(10**9, 10**9 - 1000, 1000)):
        said = here("materialize", *ONE, f"results={tmp_path / 'results'}", f"out={tmp_path / 'out'}").refusal
    assert said.startswith(f"out={tmp_path / 'out'} needs 559,232 bytes and its disk has 1,000 free")  # two for each of 279,616 weights
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "made"), [("rank", "ranking"), ("spectra", "spectra table")])
def test_what_has_no_weights_cannot_be_materialized(tmp_path: Path, target: str, made: str) -> None:
    said = here("materialize", *ONE, f"target={target}", f"results={tmp_path}", f"out={tmp_path / 'out'}").refusal
    assert said.startswith(f"a {made} has no weights to write")


def test_a_folder_for_a_run_that_only_scores_is_refused(tmp_path: Path) -> None:
    said = here(*ONE, f"results={tmp_path}", f"out={tmp_path / 'out'}").refusal
    assert said.endswith("target=evaluate writes none: say `materialize` first")


def test_on_a_cluster_the_command_must_stay_to_write_the_folder(tmp_path: Path) -> None:
    words = ("hydra/launcher=slurm", "site=example_h100", f"results={tmp_path / 'results'}", f"out={tmp_path / 'out'}")
    assert here("materialize", *ONE, *words).refusal.endswith("add wait=true")


# -------------------------------------------------------------------------------------------------------- a whole copy


def test_a_copy_is_whole_or_not_there_at_all(tmp_path: Path) -> None:
    product = tiny_checkpoint(tmp_path / "product")
    with mock.patch.object(shutil, "copyfile", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        export.write(product, tmp_path / "out", "card")
    assert [path.name for path in tmp_path.iterdir()] == ["product"]
    (tmp_path / "out").mkdir()
    export.write(product, tmp_path / "out", "card")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in product.iterdir()} | {"README.md"}


def test_the_copy_shares_no_file_with_the_store_and_follows_its_links(tmp_path: Path) -> None:
    original = tiny_checkpoint(tmp_path / "original")
    product = tmp_path / "product"
    product.mkdir()
    for path in original.iterdir():
        (product / path.name).symlink_to(path)
    export.write(product, tmp_path / "out", "card")
    for path in original.iterdir():
        copied = tmp_path / "out" / path.name
        assert not copied.is_symlink()
        assert not copied.samefile(path)
        assert copied.read_bytes() == path.read_bytes()


def test_the_room_that_the_files_take_is_looked_at_before_the_first_is_copied(tmp_path: Path) -> None:
    product = tiny_checkpoint(tmp_path / "product")
    size = sum(path.stat().st_size for path in product.iterdir()) + len("card")
    with mock.patch.object(shutil, "disk_usage", return_value=Usage(size, 1, size - 1)), pytest.raises(ValueError, match=f"{size:,} bytes"):
        export.write(product, tmp_path / "out", "card")
    with mock.patch.object(shutil, "disk_usage", return_value=Usage(size, 0, size)):
        export.write(product, tmp_path / "out", "card")


# ---------------------------------------------------------------------------------------------------------------- cards


def test_a_checkpoint_in_words_says_where_it_is_from_and_how_it_was_trained() -> None:
    assert model_card.words(BASE) == "owner/model at revision abc"
    assert model_card.words(FOLDER) == "a folder whose weights have the SHA-256 cd34"
    assert model_card.words(PRETRAINED).startswith(
        "pre-trained from scratch on 800 tokens of math and 200 tokens of text (learning rate 0.001"
    )
    assert model_card.words(TUNED).startswith(f"`{key(BASE)}` after continual pre-training on 800 tokens of math and 200 tokens of text")


def test_no_path_of_the_machine_stands_in_a_checkpoint_in_words() -> None:
    assert FOLDER.path not in model_card.words(FOLDER)


# -------------------------------------------------------------------------------------------------------- from end to end


@dataclass(frozen=True)
class Place:
    """A folder with a tuned model, a base and a store."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "results")

    def run(self, *words: str) -> Answer:
        models = ("tuned.from=folder", "tuned.path=tuned", "base.from=folder", "base.path=base")
        answer = there(*words, *models, "results=results", "tracking=off", "workers=1", cwd=self.folder)
        assert answer.code == 0, answer.out + answer.err
        return answer

    def made(self) -> list[Patched]:
        found = [parse(read_json(path.parent / "spec.json")) for path in (self.folder / "results" / "materialized").glob("*/DONE")]
        return [spec for spec in found if isinstance(spec, Patched)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Half of the heads of an experiment's random order, rewound, in the folder `half`."""
    folder = tmp_path_factory.mktemp("materialize")
    for seed, name in enumerate(("tuned", "base")):
        tiny_checkpoint(folder / name, seed=seed, tokenizer=True)
    made = Place(folder)
    chosen = ("criterion=random", "criterion.seed=1", "intervention.direction=ascending", "intervention.fraction=0.5")
    answer = made.run("materialize", "+experiment=quickstart", *chosen, "out=half")
    assert answer.out.splitlines()[-1] == f"checkpoint: {folder / 'half'}"
    return made


@pytest.mark.slow
def test_a_point_of_an_experiment_becomes_a_folder_with_the_bits_of_the_store(place: Place) -> None:
    (spec,) = place.made()
    half, product = place.folder / "half", place.store.product(spec)
    assert weights_digest(half) == weights_digest(product)
    patched, tuned, base = (open_weights(place.folder / name) for name in ("half", "tuned", "base"))
    changed = {name for name in tuned if not torch.equal(patched[name], tuned[name])}
    assert changed
    assert all(".self_attn." in name for name in changed)
    assert set(patched) == set(tuned) == set(base)
    assert sorted(path.name for path in place.folder.iterdir()) == ["base", "half", "results", "tuned"]


@pytest.mark.slow
def test_the_experiment_keeps_its_own_study(place: Place) -> None:
    assert names(place.store) == ["quickstart_materialized"]


@pytest.mark.slow
def test_transformers_and_the_stock_harness_load_the_folder_and_score_as_the_weights_do(place: Place) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = place.folder / "half"
    model = AutoModelForCausalLM.from_pretrained(half)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in open_weights(half).items())
    tokenizer = AutoTokenizer.from_pretrained(half)
    context, continuation = "Anna has 7 apples", " and gives 2 of them to Tom."
    harness = HFLM(pretrained=str(half), device="cpu", batch_size=1, dtype="float32")
    request = Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0)
    ((score, _),) = harness.loglikelihood([request], disable_tqdm=True)
    ids = tokenizer(context + continuation, return_tensors="pt").input_ids
    first = len(tokenizer(context).input_ids)
    with torch.no_grad():
        logs = model(ids).logits.log_softmax(-1)
    expected = sum(float(logs[0, place - 1, ids[0, place]]) for place in range(first, ids.shape[1]))
    assert score == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_card_says_what_was_done_to_what_and_with_which_code(place: Place) -> None:
    (spec,) = place.made()
    (change,) = spec.interventions
    card = (place.folder / "half" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {"library_name": "transformers", "tags": ["cpt_lab"]}
    assert card.count(key(spec)) == 2
    assert "## Change 1: rewind\n" in card
    heads = json.loads(card.partition('"heads": ')[2].partition("}")[0])
    assert tuple(map(tuple, heads)) == getattr(change, "select").heads  # noqa: B009
    assert len(heads) == tiny_shape().total_heads // 2
    for name in ("tuned", "base"):
        assert weights_digest(place.folder / name) in card
    assert weights_digest(place.folder / "half") in card
    assert '"criterion": "random"' in card
    assert '"seed": 1' in card
    assert "- command: `python -m cpt_lab materialize +experiment=quickstart criterion=random" in card
    built: dict[str, Any] = place.store.provenance(spec)
    assert built["git"] in card
    assert f"torch {built['versions']['torch']}" in card
    assert str(place.folder) not in card


@pytest.mark.slow
def test_resume_goes_on_and_writes_the_folder(place: Place) -> None:
    (spec,) = place.made()
    before = weights_digest(place.folder / "half")
    shutil.rmtree(place.folder / "half")
    shutil.rmtree(place.store.folder(spec))
    answer = there("resume", "quickstart_materialized", "results=results", cwd=place.folder)
    assert answer.code == 0, answer.out + answer.err
    assert answer.out.splitlines()[-1] == f"checkpoint: {place.folder / 'half'}"
    assert weights_digest(place.folder / "half") == before


@pytest.mark.slow
def test_target_materialize_with_a_folder_writes_the_same(place: Place) -> None:
    chosen = ("criterion=random", "criterion.seed=1", "intervention.direction=ascending", "intervention.fraction=0.5")
    answer = place.run("target=materialize", "intervention=rewind", *chosen, "out=deep/again")
    assert ": 1 points, 1 done, 0 to do" in answer.out
    assert weights_digest(place.folder / "deep" / "again") == weights_digest(place.folder / "half")


@pytest.mark.slow
def test_no_intervention_copies_the_tuned_model_bit_for_bit(place: Place) -> None:
    place.run("materialize", "intervention=none", "out=copy")
    assert weights_digest(place.folder / "copy") == weights_digest(place.folder / "tuned")
    assert (place.folder / "copy" / "config.json").read_bytes() == (place.folder / "tuned" / "config.json").read_bytes()
    assert "The unchanged weights of a checkpoint" in (place.folder / "copy" / "README.md").read_text()


@pytest.mark.slow
def test_a_model_with_fewer_layers_is_a_model_and_says_which_went(place: Place) -> None:
    from transformers import AutoModelForCausalLM

    place.run("materialize", "intervention=prune_layers", "intervention.layers=[0]", "out=shorter")
    assert AutoModelForCausalLM.from_pretrained(place.folder / "shorter").config.num_hidden_layers == tiny_shape().num_layers - 1
    card = (place.folder / "shorter" / "README.md").read_text()
    assert "## Change 1: prune_layers" in card
    assert '{"layers": [0]}' in card


def test_the_card_of_a_hub_model_names_its_base_models(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = HubCheckpoint(id="owner/other", revision="main", shape=BASE.shape)
    spec = Patched(tuned=other, interventions=rewound_heads((0, 1)).interventions)
    lease = store.claim(spec)
    assert lease is not None
    with store.building(spec, lease) as work:
        tiny_checkpoint(work.product)
    lease.release()
    card = model_card.text(spec, (), store, command="python -m cpt_lab materialize")
    assert set(yaml.safe_load(card.split("---\n")[1])["base_model"]) == {"owner/other", "owner/model"}
    assert "owner/other at revision main" in card
