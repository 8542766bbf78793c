"""Matrices and spectra for the tests of measures."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from cpt_lab.spectra.fits import Distance
from cpt_lab.spectra.measures import Spectrum


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(random(rows, columns, seed=seed)).Q


def with_values(values: Tensor, rows: int, seed: int = 0) -> Tensor:
    """A matrix of these singular values between random singular vectors."""
    return (orthonormal(rows, len(values), seed) * values) @ orthonormal(len(values), len(values), seed + 1).mT


def spectrum(matrices: Tensor, stored: torch.dtype = torch.float64, null: Tensor | None = None) -> Spectrum:
    """The spectra of matrices (..., rows, columns), from numpy's decomposition, and of others as their null."""
    columns, rows = sorted(matrices.shape[-2:])
    blocks = matrices.double().flatten(0, -3) if matrices.ndim > 2 else matrices.double().unsqueeze(0)
    std, mean = (
        torch.tensor([statistic(block) for block in blocks.numpy()], dtype=torch.float64).reshape(matrices.shape[:-2])
        for statistic in (np.std, np.mean)
    )
    nulls = None if null is None else exact(null)
    return Spectrum(exact(matrices), rows, columns, torch.finfo(stored).eps, std, mean, nulls)


def exact(matrices: Tensor) -> Tensor:
    return torch.from_numpy(np.linalg.svd(matrices.double().numpy(), compute_uv=False))


def pareto(count: int, alpha: float, seed: int) -> np.ndarray:
    """A sample of a density x^-alpha from 1 on, by inversion, descending."""
    uniform = np.random.default_rng(seed).random(count)
    return np.sort((1 - uniform) ** (-1 / (alpha - 1)))[::-1].copy()


def fit_by_loops(values: list[float], min_tail: int, ks: Distance = "clauset") -> tuple[float, float, float, int]:
    """(alpha, KS, x_min, tail) of Clauset et al., one cut-off and one value after another."""
    best = (math.nan, math.inf, math.nan, 0)
    for x_min in sorted(set(values)):
        tail = sorted(value for value in values if value >= x_min)
        logs = sum(math.log(value / x_min) for value in tail)
        if len(tail) < min_tail or logs <= 0:
            continue
        alpha = 1 + len(tail) / logs
        distance = 0.0
        for value in tail:
            fitted = 1 - (value / x_min) ** (1 - alpha)
            distance = max(distance, abs(fitted - sum(other < value for other in tail) / len(tail)))
            if ks == "two_sided":
                distance = max(distance, abs(fitted - sum(other <= value for other in tail) / len(tail)))
        if distance < best[1]:
            best = (alpha, distance, x_min, len(tail))
    return best
