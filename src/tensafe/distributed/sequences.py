"""Labels for sequences that will be cut, over context-parallel ranks or into chunks, and for rows that hold several.

A label belongs to the position before it, and at the end of a piece that position is in another piece. So labels are
shifted while the sequence is whole; what is shifted after the cut loses one target per piece.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error
from tensafe.training.losses.ops.cross_entropy import shift_left

__all__ = ["segment_ids_from", "shifted_labels", "shifted_weights"]

_MOST_SHOWN = 8


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
    if segment_ids is not None:
        _check_ids("segment_ids", segment_ids)
        if segment_ids.shape != labels.shape:
            shape = list(labels.shape)
            message = f"'segment_ids' must be shaped like the labels, {shape}; got {list(segment_ids.shape)}."
            raise make_error(LossInputError, message, code="shape-mismatch", loc=("segment_ids",))
    return shift_left(labels.to(torch.int64), ignore_index, segment_ids=segment_ids)


def shifted_weights(weights: Tensor) -> Tensor:
    """Return `token_weights` that are aligned with the logits, as `shifted_labels` aligns the labels.

    Args:
        weights: What each label counts, of whole sequences, `[*batch seq]`; the last position gets 0.

    Raises:
        LossInputError: They have no axis, or are a DTensor that is cut along the sequence already.
    """
    _check_whole("token_weights", weights)
    return shift_left(weights, 0)


def segment_ids_from(
    *, position_ids: Tensor | None = None, cu_seqlens: Tensor | None = None, like: Tensor | None = None
) -> Tensor:
    """Return which sequence of a packed row each position belongs to: `batch["segment_ids"]` of losses of tokens.

    Call it where the batch is made. Of either:

    Args:
        position_ids: Integers `[*batch seq]`; a sequence begins wherever they are 0.
        cu_seqlens: Where sequences begin in the tokens of all rows, one row after the other, and where the last one
            ends: integers `[n + 1]`, from 0 on. What lies behind the end, padding, is one more sequence.
        like: With `cu_seqlens`, a tensor `[*batch seq]`, such as the labels, of which the shape is taken.

    Returns:
        int64, counted from 0 in each row with `position_ids`, over all rows with `cu_seqlens`.

    Raises:
        LossInputError: Neither or both are given, or `cu_seqlens` without `like`; one does not hold integers, has no
            axis, or (on the CPU) does not begin with 0, decreases, or ends behind the last token.

    Example:
        >>> import torch
        >>> from tensafe.distributed import segment_ids_from
        >>> segment_ids_from(position_ids=torch.tensor([[0, 1, 0, 1, 2]])).tolist()
        [[0, 0, 1, 1, 1]]
        >>> segment_ids_from(cu_seqlens=torch.tensor([0, 2, 4]), like=torch.zeros(1, 5)).tolist()
        [[0, 0, 1, 1, 2]]
    """
    if (position_ids is None) == (cu_seqlens is None) or (like is None) != (cu_seqlens is None):
        message = "segment_ids_from takes position_ids, or cu_seqlens and like."
        raise make_error(LossInputError, message, code="missing-tensor", loc=("position_ids",))
    if position_ids is not None:
        _check_ids("position_ids", position_ids)
        _check_whole("position_ids", position_ids)
        begins = position_ids == 0
        return begins.cumsum(-1) - begins[..., :1].to(torch.int64)
    assert cu_seqlens is not None
    assert like is not None
    _check_ids("cu_seqlens", cu_seqlens)
    _check_bounds(cu_seqlens, like.numel())
    places = torch.arange(like.numel(), dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens[1:].contiguous(), places, right=True).reshape(like.shape)


def _check_bounds(cu_seqlens: Tensor, tokens: int) -> None:
    if cu_seqlens.ndim != 1 or not len(cu_seqlens):
        found = list(cu_seqlens.shape)
        message = f"'cu_seqlens' must be [n + 1], where n sequences begin and the last one ends; got {found}."
        raise make_error(LossInputError, message, code="shape-mismatch", loc=("cu_seqlens",))
    if not cu_seqlens.is_cpu:  # looking would wait for the device
        return
    if cu_seqlens[0] != 0 or (cu_seqlens.diff() < 0).any() or cu_seqlens[-1] > tokens:
        message = f"'cu_seqlens' must rise from 0 to at most {tokens}, the number of tokens; got {_few(cu_seqlens)}."
        raise make_error(LossInputError, message, code="invalid-values", loc=("cu_seqlens",))


def _few(numbers: Tensor) -> str:
    shown = [str(int(number)) for number in numbers[:_MOST_SHOWN]]
    return f"[{', '.join(shown)}{', ...' if len(numbers) > _MOST_SHOWN else ''}]"


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
