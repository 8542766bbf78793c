"""Spectral warm-up: the singular values are the reference's, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compositions import points
from cpt_lab import specs
from cpt_lab.architecture import matrix, roles
from cpt_lab.edits import narrow
from cpt_lab.families import FAMILIES
from cpt_lab.lifecycle.spectral_warmup import WarmedUp, build_warmup, orthonormal, with_spectrum
from cpt_lab.specs import ModelShape, SpectralWarmup, TrainedCheckpoint
from cpt_lab.weights import StoredWeights, open_weights
from factory import each_family, folder_spec, tiny_checkpoint, tiny_shape, workspace


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "reference")


def whole(weights: StoredWeights | WarmedUp, shape: ModelShape, layer: int, role: str) -> torch.Tensor:
    parts = matrix(shape, layer, role)  # type: ignore[arg-type]
    return torch.cat([narrow(weights, part) for part in parts], dim=parts[0].axis)


@pytest.mark.parametrize("family", each_family(FAMILIES))
def test_every_matrix_of_every_family_keeps_its_spectrum_and_forgets_its_vectors(family: str, tmp_path: Path) -> None:
    shape, trained = tiny_shape(family), open_weights(tiny_checkpoint(tmp_path / "reference", family=family))
    drawn = WarmedUp(trained, shape, scale=0.5, seed=3)
    for layer in range(shape.num_layers):
        for role in roles(shape):
            ours, theirs = (whole(weights, shape, layer, role).double() for weights in (drawn, trained))
            assert torch.linalg.svdvals(ours) == pytest.approx(0.5 * torch.linalg.svdvals(theirs), rel=1e-4)
            cosine = (ours * theirs).sum() / ours.norm() / theirs.norm()
            assert abs(cosine) < 0.25
    assert {name: drawn[name].shape for name in drawn} == {name: trained[name].shape for name in trained}


def test_norms_are_one_and_embeddings_normal_with_the_deviation_of_olmo_core(reference: Path) -> None:
    drawn = WarmedUp(open_weights(reference), tiny_shape(), scale=1.0, seed=0)
    norms = [name for name in drawn if drawn[name].ndim == 1]
    assert norms
    assert all(bool((drawn[name] == 1).all()) for name in norms)
    embedding = drawn["model.embed_tokens.weight"]
    assert float(embedding.std()) == pytest.approx(0.02 * 0.9866, rel=0.02)  # a normal cut off at three deviations
    assert float(embedding.abs().max()) <= 0.06
    assert not torch.equal(embedding, drawn["lm_head.weight"])


def test_a_seed_draws_one_model_and_another_seed_another(reference: Path) -> None:
    shape, trained = tiny_shape(), open_weights(reference)
    first, same, other = (WarmedUp(trained, shape, scale=1.0, seed=seed) for seed in (0, 0, 1))
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.allclose(first[name], other[name], atol=1e-3)
    assert not torch.allclose(first[name], first[name.replace("q_proj", "k_proj")], atol=1e-3)


def test_the_folder_is_like_the_reference_s_without_what_was_recorded_of_its_training(reference: Path, tmp_path: Path) -> None:
    (reference / "spectra.parquet").write_bytes(b"of its training")
    spec, work = SpectralWarmup(reference=folder_spec(reference, tiny_shape()), seed=2), workspace(tmp_path / "made")
    build_warmup(spec, reference, work)
    drawn = WarmedUp(open_weights(reference), tiny_shape(), scale=1.0, seed=2)
    made = open_weights(work.product)
    assert all(torch.equal(made[name], drawn[name]) for name in drawn)
    assert set(made) == set(drawn)
    assert not (work.product / "spectra.parquet").exists()
    assert json.loads((work.product / "config.json").read_text()) == json.loads((reference / "config.json").read_text())


def test_a_reference_that_is_not_finite_is_refused_by_its_parameter(reference: Path, tmp_path: Path) -> None:
    broken = load_file(reference / "model.safetensors")
    broken["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(broken, reference / "model.safetensors", metadata={"format": "pt"})
    spec = SpectralWarmup(reference=folder_spec(reference, tiny_shape()))
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        build_warmup(spec, reference, workspace(tmp_path / "made"))


@pytest.mark.parametrize("size", [(7, 4), (4, 7), (5, 5)])
def test_a_matrix_has_the_singular_values_it_is_made_with(size: tuple[int, int]) -> None:
    values = torch.tensor([3.0, 2.0, 0.5, 0.0] + [0.0] * (min(size) - 4))
    made = with_spectrum(values, size, torch.Generator().manual_seed(0))
    assert made.shape == size
    assert torch.linalg.svdvals(made) == pytest.approx(values.double(), abs=1e-12)


def test_random_orthonormal_columns_point_in_all_directions_alike() -> None:
    """Of a uniformly distributed orthogonal matrix every entry has mean 0 and variance 1 / n, and the trace has variance 1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([orthonormal(4, 4, generator) for _ in range(3000)])
    assert drawn.mean(0).abs().max() < 0.04
    assert drawn.var(0) == pytest.approx(torch.full((4, 4), 0.25).double(), abs=0.03)
    assert float(torch.stack([one.trace() for one in drawn]).var()) == pytest.approx(1, abs=0.1)  # QR alone, with its signs, is far off


# ------------------------------------------------------------------------------------------------------------- a study


def test_a_warmed_up_run_starts_from_the_spectra_of_the_run_from_chance() -> None:
    made = [point.spec for point in points("+experiment=lifecycle_tiny") if isinstance(point.spec, TrainedCheckpoint)]
    plain, warm = (run for run in made if run.shape.num_layers == 6 and run.recipe.seed == 0)
    assert plain.start is None
    assert warm.start == SpectralWarmup(reference=plain)
    assert warm.but(start=None) == plain
    assert warm.label().startswith("pretrain")
    assert plain.watch == specs.Watch(every=10, measures=plain.watch.measures if plain.watch else ())
    assert [need for need in specs.closure([warm]) if isinstance(need, TrainedCheckpoint)] == [plain, warm]


def test_a_warm_up_may_have_any_reference_and_scale() -> None:
    words = ("target=train", "tuned.from=pretrain", "pretrain.start=spectral_warmup", "pretrain.spectral_warmup.scale=0.5")
    (point,) = points(*words, "pretrain.spectral_warmup.reference=tuned", "base.from=hub", "model=olmo2_1b")
    assert isinstance(point.spec, TrainedCheckpoint)
    assert isinstance(point.spec.start, SpectralWarmup)
    assert point.spec.start.scale == 0.5
    assert point.spec.start.reference == point.spec.but(start=None)
