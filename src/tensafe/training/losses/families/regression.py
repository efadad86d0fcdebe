"""Predictions against targets of the same shape: what these losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe._lazy import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["where_counted"]


def where_counted(
    mask: Bool[Tensor, "*shape"] | None, predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return both with 0 where the mask is False: what does not count then reaches no value and no gradient."""
    if mask is None:
        return predictions, targets
    return torch.where(mask, predictions, 0.0), torch.where(mask, targets, 0.0)
