"""Rows that hold one sequence each, or several that are packed into one: sums over sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe._lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PACKED", "count_sequences", "sequence_totals"]

PACKED = ("segment_ids", "cu_seqlens", "cu_seq_lens_q", "seq_idx")
"""Keys of a batch by which its rows are packed, whatever they hold."""


def sequence_totals(weights: Tensor, segment_ids: Tensor | None, *, apart: bool = False) -> Tensor:
    """Return the sum over each sequence, at every place of it; what comes back broadcasts to the weights.

    Args:
        weights: What is added up, floats `[batch ...]`.
        segment_ids: Which sequence of its row each place belongs to, integers shaped like the weights (without their
            last axis where that is apart); None where each row is one.
        apart: Whether the last axis is one of several losses, which are not added together.
    """
    if segment_ids is None:
        return weights.sum(tuple(range(1, weights.ndim - apart)), keepdim=True)
    totals, places = _totals(weights, segment_ids)
    return totals.gather(1, places).reshape(weights.shape)


def count_sequences(weights: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Return how many sequences have anything that counts; the arguments are those of `sequence_totals`."""
    if segment_ids is None:
        return (weights.flatten(1).sum(1) != 0).sum()
    totals, _ = _totals(weights.to(torch.promote_types(weights.dtype, torch.float32)), segment_ids)
    return (totals.sum(2) != 0).sum()


def _totals(weights: Tensor, segment_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of each sequence, `[batch n k]`, and where along the second axis that of each place is."""
    ids = segment_ids.flatten(1).contiguous()
    first = torch.searchsorted(ids.sort(1).values, ids)  # a number below n for each id of a row, whatever the ids are
    addends = weights.reshape(*ids.shape, weights.shape[segment_ids.ndim :].numel())
    places = first.unsqueeze(2).expand_as(addends)
    return torch.zeros_like(addends).scatter_add(1, places, addends), places
