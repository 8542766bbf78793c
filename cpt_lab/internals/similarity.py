"""Similarity of two sets of features of the same examples: pure functions, float64."""

from __future__ import annotations

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
