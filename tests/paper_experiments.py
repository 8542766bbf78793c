"""Experiments of the papers for tests: files, points, and what they are of."""

from __future__ import annotations

from typing import Any

import yaml

from compositions import CONF
from cpt_lab import config
from cpt_lab.specs import Checkpoint, Evaluation, HubCheckpoint, Intervention, ModelShape, Patched, Spectra, TrainedCheckpoint
from cpt_lab.study import Point

BILLION = 10**9
# P table 2, in billions of tokens; True where it has a star
TABLE_2: dict[str, tuple[tuple[float, bool] | None, ...]] = {
    "4bdm_10b": ((4, False), (6, False), None, None, None),
    "8bdm_10b": ((8, False), (2, False), None, None, None),
    "math_10b": ((10, False), None, None, None, None),
    "text_10b": (None, (10, False), None, None, None),
    "8bdm_20b": ((8, False), (12, False), None, None, None),
    "16bdm_20b": ((16, False), (4, False), None, None, None),
    "math_20b": ((20, True), None, None, None, None),
    "text_20b": (None, (20, False), None, None, None),
    "inst_20b": (None, None, (10, True), (10, True), None),
    "10binst_10bdm_20b": ((10, False), None, (10, True), None, None),
    "code_20b": (None, None, None, None, (20, True)),
    "20bdm_50b": ((20, True), (30, True), None, None, None),
    "40bdm_50b": ((40, True), (10, False), None, None, None),
    "math_50b": ((50, True), None, None, None, None),
    "text_50b": (None, (41.5, False), (8.5, False), None, None),
}
# T table 9: base -> its instruction-tuned and its reasoning version; T table 4: alpha' of W_O in the latter
POST_TRAINED = {
    "qwen25_math_1_5b": ("Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-1.5B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"),
    "qwen25_math_7b": ("Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-Math-7B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    "llama31_8b": ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
    "qwen25_14b": ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
}


def mixture_of(name: str) -> config.MixtureConfig:
    return config.MixtureConfig.model_validate(yaml.safe_load((CONF / "mixture" / f"{name}.yaml").read_text()))


def corpus(name: str) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((CONF / "corpus" / f"{name}.yaml").read_text())
    return data


def shape_of(model: str) -> ModelShape:
    data = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())
    return ModelShape(name=model, **data["shape"])


def loaded(point: Point) -> Checkpoint:
    assert isinstance(point.spec, Evaluation)
    return point.spec.loaded


def mixture_name(point: Point) -> str:
    checkpoint = loaded(point)
    assert isinstance(checkpoint, TrainedCheckpoint)
    return checkpoint.mixture.name


def start_of(checkpoint: Checkpoint) -> str | None:
    """The mixture that the model was pre-trained on which CPT started from; None of the pre-trained model itself."""
    assert isinstance(checkpoint, TrainedCheckpoint)
    assert isinstance(checkpoint.start, TrainedCheckpoint | None)
    return None if checkpoint.start is None else checkpoint.start.mixture.name


def table(point: Point) -> Spectra:
    assert isinstance(point.spec, Spectra)
    return point.spec


def change(point: Point) -> Intervention | None:
    assert isinstance(point.spec, Evaluation)
    checkpoint = point.spec.checkpoint
    if not isinstance(checkpoint, Patched):
        return None
    (one,) = checkpoint.interventions
    return one


def hub_id(checkpoint: Checkpoint) -> str:
    assert isinstance(checkpoint, HubCheckpoint)
    return checkpoint.id
