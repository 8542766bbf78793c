"""Checkpoints that cannot be used end a command before anything starts: one sentence with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compositions import points
from factory import tiny_checkpoint
from long_tables import rest_slow
from refusals import REWIND, folders, refusal


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tuned")


@pytest.mark.slow
def test_models_of_two_sizes_are_refused_with_the_first_size_that_differs(tmp_path: Path, checkpoint: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", num_layers=3)
    for target in (("target=spectra",), ("target=rank",), (*REWIND, "intervention.fraction=0.5")):
        said = refusal(tmp_path, *target, *folders(checkpoint, base))
        assert "num_layers is 2 in tuned and 3 in base" in said


@pytest.mark.parametrize(
    ("words", "message"),
    rest_slow(
        [
            (("spectra.measures=papr",), "spectra.measures: unknown spectral measure or preset 'papr' (did you mean paper"),
            (("spectra.measures=[stable_rank,pl_alfa]",), "'pl_alfa' (did you mean pl_alpha"),
            (("spectra=post_training", "spectra.against=null"), "the measures of post_training compare two checkpoints and there is one"),
            (("spectra.measures=svsm_mean", "spectra.against=null"), "svsm_mean compares two checkpoints"),
            (("spectra.of=base",), "spectra.of and spectra.against are both base"),
            (("spectra.of=tund",), "unknown checkpoint 'tund' (did you mean tuned?)"),
            (("spectra.roles=[]",), "a spectra table of no roles has no rows"),
            (("spectra.roles=[gat]",), "spectra.roles: unknown role 'gat' (did you mean gate"),
            (("spectra.min_tail=3",), "spectra.min_tail: input should be greater than or equal to 5"),
            (("spectra.blocks=head",), "spectra.blocks: input should be 'all', 'heads' or 'matrices'"),
            (("spectra.ks=two",), "spectra.ks: input should be 'clauset' or 'two_sided'"),
            (("spectra.measure=paper",), "unknown setting 'spectra.measure'"),
        ],
        fast=3,
    ),
)
def test_a_table_of_spectra_that_makes_no_sense_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path, "target=spectra", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    rest_slow(
        [
            (("target=rotations", "spectra.against=null"), "target=rotations compares two checkpoints and spectra.against is null"),
            (("target=rotations", "spectra.against=tuned"), "spectra.of and spectra.against are both tuned"),
            (("target=rotations", "rotations.layers=[4]"), "no layer 4 in a model of 4: give numbers from 0 to 3"),
            (("target=rotations", "rotations.layers=[]"), "no matrices are asked for"),
            (("target=rotations", "spectra.roles=[gat]"), "unknown role 'gat' (did you mean gate"),
            (("target=rotations", "rotations.corner=0"), "rotations.corner: input should be greater than 0"),
            (("target=attention_maps", "internals.heads=[4]"), "no head 4 in a model of 4: give numbers from 0 to 3"),
            (("target=attention_maps", "internals.layers=[-1]"), "no layer -1 in a model of 4"),
            (("target=attention_maps", "internals.prompt=0"), "internals.prompt: input should be greater than 0"),
        ],
        fast=2,
    ),
)
def test_pictures_of_matrices_and_maps_that_cannot_be_are_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    assert message in refusal(tmp_path, *words)


def test_models_of_two_families_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", family="llama")
    assert "family is olmo2 in tuned and llama in base" in refusal(tmp_path, "target=spectra", *folders(checkpoint, base))


def test_a_reference_of_another_size_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    base, other = tiny_checkpoint(tmp_path / "base", seed=1), tiny_checkpoint(tmp_path / "other", num_layers=3)
    reference = ("reference.from=folder", f"reference.path={other}")
    said = refusal(tmp_path, "target=rank", "criterion=scaled_norm_diff", *folders(checkpoint, base), *reference)
    assert "num_layers is 3 in reference and 2 in base" in said


def test_weights_that_differ_behind_equal_configurations_are_refused_with_the_first_parameter(tmp_path: Path, checkpoint: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", seed=1)
    rewrite(base, "model.layers.1.mlp.down_proj.weight", torch.zeros(32, 40))
    said = refusal(tmp_path, "target=spectra", *folders(checkpoint, base))
    assert said.startswith("model.layers.1.mlp.down_proj.weight is (32, 48) in tuned and (32, 40) in base")


def test_weights_stored_in_two_dtypes_are_refused_before_anything_is_built_but_where_only_spectra_are_taken(
    tmp_path: Path, checkpoint: Path
) -> None:
    other = tiny_checkpoint(tmp_path / "base", dtype=torch.bfloat16)
    words = (*folders(checkpoint, other), "intervention=rewind", "criterion=random", "intervention.fraction=0.5")
    said = refusal(tmp_path, *words, verb="run")
    assert " is F32 in tuned and BF16 in base: convert one of the checkpoints" in said
    assert len(points(*folders(checkpoint, other), "intervention=transplant")) == 1


def test_a_parameter_that_one_model_lacks_is_named(tmp_path: Path, checkpoint: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", seed=1)
    rewrite(base, "model.norm.weight", None)
    assert refusal(tmp_path, "target=spectra", *folders(checkpoint, base)).startswith("model.norm.weight is missing in base")


def test_a_folder_without_safetensors_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert f"{checkpoint} holds no safetensors" in refusal(tmp_path, "target=spectra", *folders(checkpoint, checkpoint))


def test_a_folder_with_a_pickle_only_is_refused_with_how_to_convert_it(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    said = refusal(tmp_path, "target=spectra", *folders(checkpoint, checkpoint))
    assert "holds pickled weights only (pytorch_model.bin)" in said
    assert "save_pretrained" in said


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_whole_configuration_is_refused(tmp_path: Path, checkpoint: Path, content: str | None) -> None:
    if content is None:
        (checkpoint / "config.json").unlink()
    else:
        (checkpoint / "config.json").write_text(content)
    said = refusal(tmp_path, "target=spectra", *folders(checkpoint, checkpoint))
    assert "config.json" in said
    assert said.endswith("give the folder of a model in Hugging Face format")


def test_a_family_that_nobody_described_says_what_its_row_needs(tmp_path: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "model_type": "olmo9"}))
    said = refusal(tmp_path, "target=spectra", *folders(checkpoint, checkpoint))
    assert "olmo9" in said
    assert "FAMILIES" in said


def test_weights_that_are_not_finite_are_refused_with_checkpoint_and_parameter(tmp_path: Path, checkpoint: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", seed=1)
    rewrite(base, "model.norm.weight", torch.tensor([1.0, float("nan"), float("inf")] + [1.0] * 29))
    said = refusal(tmp_path, "target=spectra", *folders(checkpoint, base), verb="run")
    assert said.startswith(f"{base} has 2 values in model.norm.weight that are not finite")


def test_a_hub_id_without_network_says_how_to_point_to_a_folder(tmp_path: Path) -> None:
    hub = ("model=olmo2_1b", "base.from=hub", "tuned.from=hub", "protocol=gsm8k")
    said = refusal(tmp_path, "target=spectra", *hub, verb="run", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert said.startswith("allenai/OLMo-2-0425-1B (stage1-step1907359-tokens4001B) is not on this machine")
    assert "base.from=folder base.path=FOLDER" in said


def rewrite(folder: Path, parameter: str, tensor: torch.Tensor | None) -> None:
    """Replace one parameter of a saved checkpoint, or leave it out."""
    weights = load_file(folder / "model.safetensors")
    del weights[parameter]
    save_file({**weights, **({} if tensor is None else {parameter: tensor})}, folder / "model.safetensors", metadata={"format": "pt"})
