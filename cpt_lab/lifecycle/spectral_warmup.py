"""Spectral warm-up: weights whose matrices have the singular values of a trained model and random singular vectors (L appendix F)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cpt_lab.architecture import Role, matrix, roles
from cpt_lab.edits import narrow, view
from cpt_lab.factors import singular_values
from cpt_lab.weights import check_finite, open_weights, save_checkpoint

if TYPE_CHECKING:
    from cpt_lab.specs import ModelShape, SpectralWarmup
    from cpt_lab.store import Workspace
    from cpt_lab.weights import StoredWeights

DEVIATION = 0.02  # of embeddings, as OLMo-core draws them: normal, cut off at three deviations
CUT = 3.0


def build_warmup(spec: SpectralWarmup, reference: Path, work: Workspace) -> None:
    """Write a checkpoint folder like the reference's; ValueError if that is not finite or lacks a parameter of its shape."""
    save_checkpoint(WarmedUp(open_weights(reference), spec.shape, scale=spec.scale, seed=spec.seed), reference, work.product)


class WarmedUp(Mapping[str, Tensor]):
    """The parameters of a reference model drawn anew, each when it is asked for.

    Matrices of the layers are U diag(scale x s) V^T with the s of the reference's and random U and V with orthonormal columns, norms are
    1, biases 0, embeddings normal. A parameter's draws depend on the seed and on its own place alone.
    """

    def __init__(self, reference: StoredWeights, shape: ModelShape, *, scale: float, seed: int) -> None:
        self._reference = reference
        self._scale, self._seed = scale, seed
        self._matrices: dict[str, list[tuple[int, Role]]] = {}
        self._shape = shape
        for layer in range(shape.num_layers):
            for role in roles(shape):
                for name in dict.fromkeys(part.parameter for part in matrix(shape, layer, role)):
                    self._matrices.setdefault(name, []).append((layer, role))

    def __getitem__(self, name: str) -> Tensor:
        stored = self._reference[name]
        check_finite({name: stored}, "the reference of a spectral warm-up")
        if name in self._matrices:
            return self._drawn(name, stored)
        if stored.ndim == 1:
            return torch.zeros_like(stored) if name.endswith("bias") else torch.ones_like(stored)
        normal = torch.empty(stored.shape, dtype=torch.float64)
        generator = _generator(self._seed, name)
        torch.nn.init.trunc_normal_(normal, std=DEVIATION, a=-CUT * DEVIATION, b=CUT * DEVIATION, generator=generator)
        return normal.to(stored.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._reference)

    def __len__(self) -> int:
        return len(self._reference)

    def _drawn(self, name: str, stored: Tensor) -> Tensor:
        """A parameter that holds one or more roles' matrices."""
        drawn = stored.clone()
        for layer, role in self._matrices[name]:
            parts = matrix(self._shape, layer, role)
            whole = torch.cat([narrow(self._reference, part) for part in parts], dim=parts[0].axis)
            made = with_spectrum(self._scale * singular_values(whole), whole.shape, _generator(self._seed, layer, role))
            pieces = torch.split(made, [part.stop - part.start for part in parts], dim=parts[0].axis)
            for part, piece in zip(parts, pieces, strict=True):
                view(drawn, part).copy_(piece)
        return drawn


def with_spectrum(singular: Tensor, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A random matrix (m, n) of float64 with these min(m, n) singular values: U diag(s) V^T, U and V uniformly distributed."""
    rows, columns = size
    left, right = (orthonormal(length, len(singular), generator) for length in (rows, columns))
    made: Tensor = (left * singular.double()) @ right.mT
    return made


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) with orthonormal columns, uniformly distributed: the Q of a Gaussian matrix whose R has a positive diagonal."""
    gaussian = torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    found, triangle = torch.linalg.qr(gaussian)
    uniform: Tensor = found * torch.where(triangle.diagonal() < 0, -1.0, 1.0)
    return uniform


def _generator(*place: int | str) -> torch.Generator:
    """A generator of its own for a place: what is drawn there depends on no other and on no order of work."""
    digest = hashlib.sha256(" ".join(map(str, place)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # it takes 63 bits
