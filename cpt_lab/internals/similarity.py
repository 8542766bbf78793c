"""Similarity of two sets of features of the same examples, and what attention is made of: pure functions."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def gram(features: Tensor) -> Tensor:
    """K = X_c X_c^T (..., n, n) of features (..., n, d) less their mean over the n examples: all that linear CKA needs of them."""
    centred = features.double() - features.double().mean(-2, keepdim=True)
    return centred @ centred.mT


def linear_cka(one: Tensor, other: Tensor) -> Tensor:
    """Linear centred kernel alignment of two Gram matrices (..., n, n): <K, L> / (||K|| ||L||), from 0 to 1 (Kornblith et al. 2019, eq. 5).

    The features may have different numbers of dimensions; rotations and scale of either do not matter. nan where all examples of one are
    alike. With far fewer examples than dimensions it is high for unrelated features too: compare with a control.
    """
    alike: Tensor = (one * other).sum((-2, -1)) / (torch.linalg.matrix_norm(one) * torch.linalg.matrix_norm(other))
    return alike


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_i p_i log p_i over the last axis in nats, with 0 log 0 = 0: from 0 to log n."""
    total: Tensor = torch.special.entr(probabilities.double()).sum(-1)
    return total


def bounds(count: int, most: int) -> list[int]:
    """Where at most so many runs of neighbours begin, of equal length but for one, and where the last one ends."""
    return [int(bound) for bound in torch.linspace(0, count, min(count, most) + 1).round()]


def binned(weights: Tensor, most: int) -> Tensor:
    """Attention (tokens, tokens) of runs of neighbours, (n, n) with n <= most: the mean over who looks, the sum over what is looked at."""
    edges = bounds(len(weights), most)
    runs = list(pairwise(edges))
    rows = torch.stack([weights[start:stop].mean(0) for start, stop in runs])
    return torch.stack([rows[:, start:stop].sum(1) for start, stop in runs], dim=1)
