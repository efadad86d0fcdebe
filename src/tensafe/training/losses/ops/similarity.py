"""Similarity of embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Distance", "cosine", "distance", "hardest", "others_alike", "similarities", "unit"]

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


def similarities(x: Float[Tensor, "n hidden"], temperature: float) -> Float[Tensor, "n n"]:
    """Return the products of all rows over the temperature; that of a row with itself is the least finite number."""
    itself = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    # not -inf: where a row is alone, the gradient of its log-sum-exp would be NaN
    return (x @ x.T / temperature).masked_fill(itself, torch.finfo(x.dtype).min)


def others_alike(labels: Int[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """Return which other rows have the same label."""
    itself = torch.eye(labels.shape[0], dtype=torch.bool, device=labels.device)
    return (labels.unsqueeze(1) == labels.unsqueeze(0)) & ~itself


def hardest(
    x: Float[Tensor, "n hidden"], alike: Bool[Tensor, "n n"], unlike: Bool[Tensor, "n n"], kind: Distance
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return, for each row, the furthest of those alike and the nearest of those unlike; any row where there is none.

    Args:
        x: The rows.
        alike: Which rows are to be near.
        unlike: Which are to be far.
        kind: As in `distance`.
    """
    if not x.shape[0]:  # a maximum of nothing is an error
        nothing = torch.zeros(0, dtype=torch.int64, device=x.device)
        return nothing, nothing
    fixed = x.detach()
    if kind == "cosine":
        fixed = unit(fixed)
    length = fixed.square().sum(1)
    apart = length.unsqueeze(1) + length.unsqueeze(0) - 2 * (fixed @ fixed.T)  # squared, which keeps the order
    furthest = apart.masked_fill(~alike, -torch.inf).argmax(1)
    return furthest, apart.masked_fill(~unlike, torch.inf).argmin(1)
