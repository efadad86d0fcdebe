"""Ids of classes, and what is said of those that are out of range."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["wrong_ids"]


def wrong_ids(
    name: str,
    ids: Tensor,
    size: int,
    *,
    ignore_index: int | None = None,
    counts: Tensor | None = None,
    axis: str = "vocab",
) -> str | None:
    """Say how many ids of a tensor are no class, for `explain`, which may look at values; None if all are one.

    Args:
        name: The tensor.
        ids: What it holds, or is shifted to.
        size: The number of classes.
        ignore_index: What an id may be too.
        counts: Which ids are looked at; None is all.
        axis: What the classes are an axis of.
    """
    wrong = (ids < 0) | (ids >= size)
    if ignore_index is not None:
        wrong = wrong & (ids != ignore_index)
    if counts is not None:
        wrong = wrong & counts
    count = int(wrong.sum())
    if not count:
        return None
    otherwise = "" if ignore_index is None else f" or be ignore_index={ignore_index}"
    return f"{name!r} must lie in [0, {size}) ({axis}={size}){otherwise}; {count} of {ids.numel()} do not."
