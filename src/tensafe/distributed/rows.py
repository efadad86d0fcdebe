"""The rows of all ranks, for losses whose samples are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from tensafe.training.losses.errors import LossTypeError, make_error
from tensafe.training.losses.ops.fused import apply

from .agreement import give_up, in_one_order, rows_here, rows_of_ranks
from .ranks import all_gather, device_for, gradient_scale

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["gather_rows"]


@overload
def gather_rows(tensors: Tensor, group: ProcessGroup | None = None) -> Tensor: ...


@overload
def gather_rows(tensors: Mapping[str, Any], group: ProcessGroup | None = None) -> Mapping[str, Any]: ...


def gather_rows(tensors: Tensor | Mapping[str, Any], group: ProcessGroup | None = None) -> Tensor | Mapping[str, Any]:
    """Return the rows of all ranks, in the order of ranks: what a loss with negatives from the batch is to be given.

    `loss_fn(gather_rows(outputs), gather_rows(batch))` is the loss of the whole batch, on every rank. A rank gets the
    gradient of its own rows, which is exact, and nothing is sent in the backward pass. Where ranks average gradients,
    `(loss * gradient_scale(group)).backward()` gives parameters the gradient that one process would give them.

    All ranks must compute the same loss of what comes back: of all of it, with the same kwargs. If each measured its
    own rows only, what these say of the rows of others would be lost. For the same reason a parameter that learns must
    be used before the rows are gathered, or pass through here as a tensor without an axis, as `logit_scale` of `siglip`
    does: every rank finds its whole gradient, so each is given its share, one over the number of ranks.

    Args:
        tensors: A tensor, or named ones, outputs or a batch: what the loss takes, and no more. The first axis of each
            is its rows. The tensors of one call have equally many, and each rank as many as it likes, 0 too; all else
            is alike on all ranks. Tensors without an axis are not gathered, and what is no tensor is left as it is, a
            list too.
        group: The ranks that share the batch. None is the default group, or this process alone where
            `torch.distributed` is not initialised. Each of them must call: one that raises an error before it calls
            lets the others wait.

    Returns:
        The same, of all ranks: a tensor, or a dict in the order of `tensors`; for one rank, what was given. Integers
        and flags come without a gradient, and gradients cannot be differentiated again.

    Raises:
        LossTypeError: `tensors` is no tensor and no mapping.
        LossInputError: Tensors of this rank differ in rows, are sharded or sparse; or ranks differ in names, dtypes or
            other axes. All ranks raise.

    Example:
        >>> import torch
        >>> from tensafe.distributed import gather_rows, gradient_scale
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"embeddings_a": torch.eye(2, requires_grad=True), "embeddings_b": torch.eye(2)}
        >>> loss = resolve_loss("contrastive", temperature=1.0)(gather_rows(outputs), gather_rows({}))["loss"]
        >>> (loss * gradient_scale()).backward()
    """
    ranks = gradient_scale(group)
    try:
        named = _named(tensors)
        rows = rows_here(named)
    except Exception:
        if ranks > 1:  # lest the other ranks wait for this one
            give_up(group)
        raise
    if ranks == 1:
        return tensors
    counts = rows_of_ranks(named, rows, group)
    made = {name: _of_all(named[name], counts, group) for name in in_one_order(named)}
    return (
        {name: made.get(name, value) for name, value in tensors.items()} if isinstance(tensors, Mapping) else made[""]
    )


def _named(tensors: object) -> dict[str, Tensor]:
    if isinstance(tensors, Tensor):
        return {"": tensors}
    if isinstance(tensors, Mapping):
        items = cast("Mapping[str, object]", tensors).items()
        return {name: value for name, value in items if isinstance(value, Tensor)}
    raise make_error(
        LossTypeError,
        f"gather_rows takes a tensor, or a mapping of named ones; got {type(tensors).__name__}.",
        code="not-tensors",
        hint="Name what the loss needs: {'embeddings': outputs.embeddings}.",
    )


def _of_all(tensor: Tensor, counts: list[int], group: ProcessGroup | None) -> Tensor:
    if not tensor.ndim:
        return apply(_Shared, tensor, len(counts)) if tensor.requires_grad else tensor
    made: Tensor = apply(_Gathered, tensor, counts, group)
    return made


class _Shared(torch.autograd.Function):
    """A number of which every rank finds the whole gradient."""

    @staticmethod
    def forward(ctx: Any, number: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return number.view_as(number)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return upstream[0] / ctx.ranks, None


class _Gathered(torch.autograd.Function):
    """All rows; the gradient of those of this rank is its part of theirs, since every rank finds the same one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: ProcessGroup | None) -> Tensor:
        before = sum(counts[: dist.get_rank(group)])
        ctx.own = slice(before, before + rows.shape[0])
        return _gathered(rows, counts, group)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator's doing
        ctx: Any, *upstream: Tensor
    ) -> Any:
        return upstream[0][ctx.own].clone(), None, None  # a view would keep all of it


def _gathered(rows: Tensor, counts: list[int], group: ProcessGroup | None) -> Tensor:
    """Return the rows of all ranks, in one all-gather of bytes, whatever the dtype; each sends as many as the most."""
    most, shape = max(counts), rows.shape[1:]
    size = most * shape.numel() * rows.dtype.itemsize
    if not size:
        return rows.new_empty((sum(counts), *shape))
    sent = torch.zeros(size, dtype=torch.uint8, device=device_for(rows.device, group))
    sent.view(rows.dtype)[: rows.numel()].copy_(rows.reshape(-1))
    heard = sent.new_empty(len(counts) * size)
    all_gather(heard, sent, group)
    whole = heard.view(rows.dtype).view(len(counts), most, *shape)
    if min(counts) == most:
        return whole.flatten(0, 1).to(rows.device)
    return torch.cat([part[:count] for part, count in zip(whole, counts, strict=True)]).to(rows.device)
