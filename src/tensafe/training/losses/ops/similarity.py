"""Similarity of embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Distance", "cosine", "distance", "unit"]

Distance = Literal["euclidean", "cosine", "squared"]

_NEVER_ZERO = 1e-6
"""Added to each difference, as torch does by default: a length of 0 has no gradient."""


def unit(x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
    """Return rows scaled to length 1; a zero row stays zero.

    Exact for every finite row: dividing by the largest magnitude first keeps the squares from overflowing or
    vanishing. A zero row has the gradient of the identity, where dividing by an epsilon would give one of 1e12.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    scaled = x / torch.where(largest == 0, 1.0, largest)
    squared = scaled.square().sum(-1, keepdim=True)
    return scaled / torch.where(squared == 0, 1.0, squared).sqrt()


def cosine(a: Float[Tensor, "*rows hidden"], b: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows"]:
    """Return the cosine of the angle between rows, in [-1, 1]; 0 where one is zero."""
    return (unit(a) * unit(b)).sum(-1)


def distance(
    a: Float[Tensor, "*rows hidden"], b: Float[Tensor, "*rows hidden"], kind: Distance
) -> Float[Tensor, "*rows"]:
    """Return how far rows are apart.

    Args:
        a: One side.
        b: The other.
        kind: `euclidean`, the length of the difference; `squared`, its square; `cosine`, 1 - the cosine.
    """
    if kind == "cosine":
        return 1 - cosine(a, b)
    if kind == "squared":
        return (a - b).square().sum(-1)
    return torch.nn.functional.pairwise_distance(a, b, eps=_NEVER_ZERO)
