"""Similarity of embeddings."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["unit"]


def unit(x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows hidden"]:
    """Return rows scaled to length 1; a zero row stays zero.

    Exact for every finite row: dividing by the largest magnitude first keeps the squares from overflowing or
    vanishing. A zero row has the gradient of the identity, where dividing by an epsilon would give one of 1e12.
    """
    largest = x.detach().abs().amax(-1, keepdim=True)
    scaled = x / torch.where(largest == 0, 1.0, largest)
    squared = scaled.square().sum(-1, keepdim=True)
    return scaled / torch.where(squared == 0, 1.0, squared).sqrt()
