"""A finished study of spectra of real tiny models, and the same numbers by numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from analysis.results import Results
from cpt_lab.build import Workshop, ensure
from cpt_lab.execution import Execution
from cpt_lab.specs import ModelShape, Spec
from cpt_lab.store import Store
from cpt_lab.study import Point, Study, save
from factory import tiny_shape

Array = NDArray[np.float64]
SHAPE = tiny_shape(num_layers=3).but(num_heads=2, num_kv_heads=2, head_dim=16)  # heads whose 16 values are enough for a power law
SHALLOW = SHAPE.but(num_layers=2)
NAMES = {
    **{role: f"model.layers.{{}}.self_attn.{role}_proj.weight" for role in ("q", "k", "v", "o")},
    **{role: f"model.layers.{{}}.mlp.{role}_proj.weight" for role in ("gate", "up", "down")},
}


def finished(folder: Path, specs: Mapping[str, Spec], *, name: str = "spectra", unfinished: Sequence[str] = ()) -> Results:
    """A study with these points, built in a store below the folder, all but the unfinished ones."""
    store = Store(folder / "results")
    workshop = Workshop(store, Execution(device="cpu", threads=1))
    for title, spec in specs.items():
        if title not in unfinished:
            ensure(workshop, spec)
    study = Study(name=name, points=tuple(Point(name=title, varies={}, config={}, spec=spec) for title, spec in specs.items()))
    save(store, study)
    return Results(store, [study])


def weights(folder: Path) -> dict[str, Array]:
    """All parameters of a saved model in float64."""
    return {name: values.astype(np.float64) for name, values in load_file(folder / "model.safetensors").items()}


def matrix(parameters: Mapping[str, Array], layer: int, role: str) -> Array:
    """(residual, head): a whole matrix with the residual stream in its rows."""
    found = parameters[NAMES[role].format(layer)]
    return found if role in ("o", "down") else found.T


def block(parameters: Mapping[str, Array], layer: int, role: str, head: int, shape: ModelShape = SHAPE) -> Array:
    """(residual, head_dim): a head's columns of it."""
    return matrix(parameters, layer, role)[:, head * shape.head_dim : (head + 1) * shape.head_dim]


def values(found: Array) -> Array:
    """Singular values, descending."""
    return np.asarray(np.linalg.svd(found, compute_uv=False))


def row_maxima(base: Array, tuned: Array) -> Array:
    """max_j |u_i . u'_j| on the residual side, for every vector of the base."""
    ours, theirs = (np.linalg.svd(one, full_matrices=False)[0] for one in (base, tuned))
    return np.asarray(np.abs(ours.T @ theirs).max(axis=1))
