"""Labels for sequences that will be cut: over context-parallel ranks, or into chunks.

A label belongs to the position before it, and at the end of a piece that position is in another piece. So labels are
shifted while the sequence is whole; what is shifted after the cut loses one target per piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error
from tensafe.training.losses.ops.cross_entropy import shift_left

__all__ = ["shifted_labels", "shifted_weights"]


def shifted_labels(labels: Tensor, ignore_index: int = -100, segment_ids: Tensor | None = None) -> Tensor:
    """Return labels that are aligned with the logits: position t holds label t + 1.

    Call it where the batch is made, before anything cuts the sequence axis (`context_parallel`, a collator that splits
    rows, `distribute_tensor`), cut the result as the input ids are cut, in any order, and pass it as
    `batch["shift_labels"]`: a loss uses that instead of `labels` and does not shift it. Count the items of the step
    from it too.

    Args:
        labels: Target ids of whole sequences, integers `[*batch seq]`.
        ignore_index: Label of a position that does not count; the last position of each sequence gets it.
        segment_ids: Which of several packed documents each position belongs to, integers shaped like the labels. The
            last position of a document then has nothing to predict.

    Returns:
        int64, shaped like the labels.

    Raises:
        LossInputError: The labels are no integers, the segments are not shaped like them, or they are a DTensor that is
            cut along the sequence already.

    Example:
        >>> import torch
        >>> from tensafe.distributed import shifted_labels
        >>> shifted_labels(torch.tensor([[5, 6, 7, 8]]), segment_ids=torch.tensor([[0, 0, 1, 1]])).tolist()
        [[6, -100, 8, -100]]
    """
    _check_ids("labels", labels)
    _check_whole("labels", labels)
    shifted = shift_left(labels.to(torch.int64), ignore_index)
    if segment_ids is None:
        return shifted
    _check_ids("segment_ids", segment_ids)
    if segment_ids.shape != labels.shape:
        message = f"'segment_ids' must be shaped like the labels, {list(labels.shape)}; got {list(segment_ids.shape)}."
        raise make_error(LossInputError, message, code="shape-mismatch", loc=("segment_ids",))
    ends = torch.zeros_like(shifted, dtype=torch.bool)
    ends[..., :-1] = segment_ids[..., 1:] != segment_ids[..., :-1]
    return torch.where(ends, ignore_index, shifted)


def shifted_weights(weights: Tensor) -> Tensor:
    """Return `token_weights` that are aligned with the logits, as `shifted_labels` aligns the labels.

    Args:
        weights: What each label counts, of whole sequences, `[*batch seq]`; the last position gets 0.

    Raises:
        LossInputError: They have no axis, or are a DTensor that is cut along the sequence already.
    """
    _check_whole("token_weights", weights)
    return shift_left(weights, 0)


def _check_ids(name: str, ids: Tensor) -> None:
    if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype is torch.bool:
        message = f"'{name}' must be integers; got {str(ids.dtype).removeprefix('torch.')}."
        raise make_error(LossInputError, message, code="dtype-mismatch", loc=(name,))


def _check_whole(name: str, tensor: Tensor) -> None:
    if not tensor.ndim:
        message = f"'{name}' must have an axis of positions; got a single number."
        raise make_error(LossInputError, message, code="shape-mismatch", loc=(name,))
    placements = getattr(tensor, "placements", ())
    if any(placement.is_shard(tensor.ndim - 1) for placement in placements):
        raise make_error(
            LossInputError,
            f"'{name}' is cut along the sequence already, {tuple(placements)}.",
            code="placement",
            loc=(name,),
            hint="Shift it while it is whole, then cut it as the input ids are cut.",
        )
