"""Whether a checkpoint descends from another: models that do, models that do not, and ways to hide it."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compositions import points
from cpt_lab.execution import Execution
from cpt_lab.specs import Fingerprint, ModelShape, key
from cpt_lab.spectra import fingerprint
from factory import folder_spec, tiny_checkpoint, tiny_shape, workspace

Weights = dict[str, Tensor]

LAYERS = 6
SHAPE = tiny_shape(num_layers=LAYERS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models from different seeds, and a fourth one trained on from `base` by a few per cent."""
    folder = tmp_path_factory.mktemp("models")
    made = {name: tiny_checkpoint(folder / name, num_layers=LAYERS, seed=seed) for seed, name in enumerate(("base", "other", "third"))}
    return made | {"tuned": changed(made["base"], folder / "tuned", lambda weights: with_noise(weights, 0.1))}


def changed(source: Path, folder: Path, change: Callable[[Weights], Weights]) -> Path:
    shutil.copytree(source, folder)
    save_file(change(load_file(source / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_noise(weights: Weights, share: float) -> Weights:
    generator = torch.Generator().manual_seed(7)
    return {name: weight + share * weight.std() * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}


def attention(weights: Weights, change: Callable[[str, int, Tensor], Tensor]) -> Weights:
    """With every attention matrix changed, by role and layer."""
    new = dict(weights)
    for layer, role in itertools.product(range(LAYERS), "qkvo"):
        name = f"model.layers.{layer}.self_attn.{role}_proj.weight"
        new[name] = change(role, layer, weights[name]).contiguous()
    return new


def heads_permuted(role: str, layer: int, weight: Tensor) -> Tensor:
    order = torch.randperm(SHAPE.num_heads, generator=torch.Generator().manual_seed(layer))
    by_head = (weight.mT if role == "o" else weight).unflatten(0, (SHAPE.num_heads, SHAPE.head_dim))
    permuted = by_head[order].flatten(0, 1)
    return permuted.mT if role == "o" else permuted


def residual_rotated(role: str, layer: int, weight: Tensor) -> Tensor:
    del layer
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(3))).Q
    return turn @ weight if role == "o" else weight @ turn


def built(
    against: Path, checkpoint: Path, tmp_path: Path, *, controls: tuple[Path, ...] = (), shape: ModelShape = SHAPE, **settings: object
) -> dict[str, object]:
    """The verdict as it is stored."""
    base, tuned, *others = (folder_spec(folder, shape) for folder in (against, checkpoint, *controls))
    spec = Fingerprint.model_validate({"checkpoint": tuned, "against": base, "controls": others, **settings})
    products = {key(folder_spec(folder, shape)): folder for folder in (against, checkpoint, *controls)}
    work = workspace(tmp_path / "work")
    fingerprint.build_fingerprint(spec, products, work, Execution(threads=1, device="cpu"))
    return dict(json.loads((work.product / "verdict.json").read_text()))


# -------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_a_model_that_was_trained_on_descends(models: dict[str, Path], tmp_path: Path, share: float) -> None:
    tuned = changed(models["base"], tmp_path / "tuned", lambda weights: with_noise(weights, share))
    found = built(models["base"], tuned, tmp_path)
    assert found["answer"] == "descends"
    assert found["by"]["closer"] == found["by"]["matrices"] == 4 * LAYERS  # type: ignore[index]


def test_a_model_descends_from_itself(models: dict[str, Path], tmp_path: Path) -> None:
    assert built(models["base"], models["base"], tmp_path)["answer"] == "descends"


@pytest.mark.parametrize("layers", [None, 4])
def test_a_model_from_another_seed_does_not_descend(models: dict[str, Path], tmp_path: Path, layers: int | None) -> None:
    assert built(models["base"], models["other"], tmp_path, layers=layers)["answer"] == "does not descend"


@pytest.mark.slow
def test_unrelated_controls_change_neither_answer(models: dict[str, Path], tmp_path: Path) -> None:
    controls = (models["third"],)
    assert built(models["base"], models["tuned"], tmp_path / "tuned", controls=controls)["answer"] == "descends"
    assert built(models["base"], models["other"], tmp_path / "other", controls=controls)["answer"] == "does not descend"


def test_a_soup_descends_from_both_of_its_parents(models: dict[str, Path], tmp_path: Path) -> None:
    other = load_file(models["other"] / "model.safetensors")
    soup = changed(models["tuned"], tmp_path / "soup", lambda weights: {name: 0.5 * (weights[name] + other[name]) for name in weights})
    assert built(models["base"], soup, tmp_path / "first")["answer"] == "descends"
    assert built(models["other"], soup, tmp_path / "second")["answer"] == "descends"


def test_a_model_with_some_heads_rewound_descends(models: dict[str, Path], tmp_path: Path) -> None:
    base = load_file(models["base"] / "model.safetensors")

    def rewound(role: str, layer: int, weight: Tensor) -> Tensor:
        source, rows = base[f"model.layers.{layer}.self_attn.{role}_proj.weight"], torch.arange(32) < 16
        return torch.where(rows if role == "o" else rows[:, None], source, weight)

    partly = changed(models["tuned"], tmp_path / "rewound", lambda weights: attention(weights, rewound))
    assert built(models["base"], partly, tmp_path)["answer"] == "descends"


@pytest.mark.parametrize(
    ("hide", "by"),
    [
        (heads_permuted, "residual"),
        (residual_rotated, "head"),
        (lambda *found: -2.5 * found[2], None),
        (lambda _, layer, weight: (layer + 1) * weight, None),
    ],
    ids=["heads permuted", "residual stream rotated", "scaled by a negative factor", "scaled by layer"],
)
def test_a_descendant_is_found_that_was_disguised(
    models: dict[str, Path], tmp_path: Path, hide: Callable[[str, int, Tensor], Tensor], by: str | None
) -> None:
    disguised = changed(models["tuned"], tmp_path / "disguised", lambda weights: attention(weights, hide))
    found = built(models["base"], disguised, tmp_path)
    assert found["answer"] == "descends"
    assert by is None or found["by"]["statistic"] == by  # type: ignore[index]


def test_a_descendant_whose_attention_is_new_does_not_show(models: dict[str, Path], tmp_path: Path) -> None:
    other = load_file(models["other"] / "model.safetensors")

    def new(role: str, layer: int, weight: Tensor) -> Tensor:
        del weight
        return other[f"model.layers.{layer}.self_attn.{role}_proj.weight"]

    replaced = changed(models["base"], tmp_path / "replaced", lambda weights: attention(weights, new))
    assert built(models["base"], replaced, tmp_path)["answer"] == "does not descend"


def test_two_layers_without_unrelated_models_are_too_few_to_tell(tmp_path: Path) -> None:
    shape = tiny_shape(num_layers=2)
    base, other = (tiny_checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "other")))
    for index, checkpoint in enumerate((base, other)):
        assert built(base, checkpoint, tmp_path / str(index), shape=shape)["answer"] == "cannot tell"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_other_families_and_shared_heads_are_told_apart_too(tmp_path: Path, family: str) -> None:
    shape = tiny_shape(family, num_layers=4, num_kv_heads=2 if family in ("llama", "phi3") else None)
    sizes = {"family": family, "num_layers": 4, "num_kv_heads": shape.num_kv_heads}
    base, other = (tiny_checkpoint(tmp_path / name, seed=seed, **sizes) for seed, name in enumerate(("base", "other")))  # type: ignore[arg-type]
    tuned = changed(base, tmp_path / "tuned", lambda weights: with_noise(weights, 0.05))
    assert built(base, tuned, tmp_path / "1", shape=shape)["answer"] == "descends"
    assert built(base, other, tmp_path / "2", shape=shape)["answer"] == "does not descend"


# -------------------------------------------------------------------------------------------------- evidence and thresholds


def rows(matched: list[float], controls: list[float], role: str = "q") -> pd.DataFrame:
    kinds = [fingerprint.MATCHED] * len(matched) + [fingerprint.MISMATCHED] * len(controls)
    values = np.array([*matched, *controls])
    return pd.DataFrame({"kind": kinds, "role": role, "layer": 0, "other": 0, "nf": -values, "residual": values, "head": values})


def test_the_chance_is_that_of_drawing_matched_pairs_first() -> None:
    """All orders of 2 matched and 3 control values of two roles, counted."""
    counted = np.zeros(5)
    orders = list(itertools.permutations(range(5)))
    above = [sum(place > max(order[2:]) for place in order[:2]) for order in orders]
    for first, second in itertools.product(above, repeat=2):
        counted[: first + second + 1] += 1
    np.testing.assert_allclose(fingerprint._chances([(2, 3), (2, 3)]), counted / len(orders) ** 2, rtol=1e-12)


def test_matched_matrices_that_are_like_controls_do_not_descend() -> None:
    generator = np.random.default_rng(0)
    answers = []
    for _ in range(40):
        values = [rows(list(generator.normal(size=6)), list(generator.normal(size=12)), role) for role in "qkvo"]
        answers.append(fingerprint.verdict(pd.concat(values, ignore_index=True)).answer)
    assert answers.count("descends") == 0
    assert answers.count("does not descend") > 35


def test_few_matrices_above_all_controls_are_not_enough_to_tell() -> None:
    parts = [rows([3.0, 3, 0, 0, 0, 0, 0, 0], [1.0] * 15 + [2.0], role) for role in "qkvo"]
    found = fingerprint.verdict(pd.concat(parts, ignore_index=True))
    assert found.by.share == 1 / 4
    assert found.answer == "cannot tell"


def test_the_margin_is_in_deviations_of_the_controls() -> None:
    found = fingerprint.verdict(rows([10.0, 12.0, 14.0], [1.0, 3.0] * 4))
    assert found.by.margin == pytest.approx(10)
    assert math.isfinite(fingerprint.verdict(rows([1.0, 1.0], [0.0, 0.0])).by.margin)


def test_a_matrix_without_vectors_counts_as_far() -> None:
    found = fingerprint.verdict(rows([math.nan, 5.0], [1.0, math.nan, 2.0]))
    assert (found.by.closer, found.by.matrices) == (1, 2)


# ---------------------------------------------------------------------------------------------------------------- the rest


def test_each_layer_stands_as_often_on_either_side_and_never_beside_itself() -> None:
    spec = Fingerprint(checkpoint=folder_spec(Path("tuned"), SHAPE), against=folder_spec(Path("base"), SHAPE), layers=4, mismatches=2)
    assert spec.compared == (0, 1, 3, 5)
    assert all(layer != other for layer, other in spec.mismatched)
    for side in zip(*spec.mismatched, strict=True):
        assert sorted(side) == sorted((*spec.compared, *spec.compared))
    assert spec.but(layers=None, mismatches=99).mismatched == tuple(
        sorted(itertools.permutations(range(LAYERS), 2), key=lambda pair: (pair[0], (pair[1] - pair[0]) % LAYERS))
    )


def test_a_model_of_one_layer_has_nothing_to_compare_with() -> None:
    shape = tiny_shape(num_layers=1)
    with pytest.raises(ValueError, match="give a deeper model"):
        Fingerprint(checkpoint=folder_spec(Path("tuned"), shape), against=folder_spec(Path("base"), shape))


def test_a_finished_role_is_not_compared_again(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies after two roles; the next one goes on with the third."""
    asked: list[str] = []
    real = fingerprint.compared

    def compared(spec: Fingerprint, role: str, *rest: object) -> pd.DataFrame:
        asked.append(role)
        if asked == ["q", "k", "v"]:
            raise KeyboardInterrupt
        return real(spec, role, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(fingerprint, "compared", compared)
    spec = Fingerprint(checkpoint=folder_spec(models["tuned"], SHAPE), against=folder_spec(models["base"], SHAPE))
    products = {key(folder_spec(models[name], SHAPE)): models[name] for name in ("tuned", "base")}
    work = workspace(tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        fingerprint.build_fingerprint(spec, products, work, Execution(device="cpu"))
    fingerprint.build_fingerprint(spec, products, work, Execution(device="cpu"))
    assert asked == ["q", "k", "v", "v", "o"]
    table = pd.read_parquet(work.product / "matrices.parquet")
    assert table.groupby(["role", "kind"]).size().to_dict() == {
        (role, kind): LAYERS * (1 + (kind == "mismatched")) for role in "qkvo" for kind in ("matched", "mismatched")
    }


def test_weights_that_are_not_finite_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    broken = changed(models["base"], tmp_path / "broken", lambda weights: attention(weights, lambda *found: found[2] * math.nan))
    with pytest.raises(ValueError, match=r"broken\) has 1024 values in model.layers.0.self_attn.q_proj.weight"):
        built(models["base"], broken, tmp_path)


@pytest.mark.slow
def test_the_target_asks_for_the_checkpoints_by_name(models: dict[str, Path]) -> None:
    folders = [f"{name}.from=folder" for name in ("base", "tuned")] + [f"{name}.path={models[name]}" for name in ("base", "tuned")]
    control = f"+others.third={{from: folder, path: {models['third']}}}"
    (point,) = points("target=fingerprint", *folders, control, "fingerprint.controls=[third]", "fingerprint.layers=4")
    assert isinstance(point.spec, Fingerprint)
    assert [spec.shape.name for spec in (point.spec.checkpoint, point.spec.against, *point.spec.controls)] == ["tuned", "base", "third"]
    assert len(point.spec.compared) == 4
