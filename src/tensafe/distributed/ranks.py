"""What ranks tell each other: sums of a few numbers, and how many of them there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

__all__ = ["all_gather", "device_for", "gradient_scale", "largest_of_ranks", "sum_over_ranks"]

_ON_CPU = ("gloo", "mpi", "ucc")


def gradient_scale(group: ProcessGroup | None = None) -> int:
    """Return what to multiply a loss by where ranks average their gradients, as DDP and FSDP do: how many ranks.

    A loss that is divided by the count of all ranks wants its gradients added. The mean over `n` ranks is the sum
    divided by `n`, so `(loss * gradient_scale()).backward()` undoes it. Accumulation adds gradients, so it needs
    nothing: divide by the number of micro-batches nowhere.

    Args:
        group: The ranks that gradients are averaged over. None is the default group, or this process alone where
            `torch.distributed` is not initialised.

    Example:
        >>> from tensafe.distributed import gradient_scale
        >>> gradient_scale()  # one process
        1
    """
    return dist.get_world_size(group) if _is_running() else 1


def sum_over_ranks(numbers: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the sum of a tensor over ranks, in one all-reduce; in one process, the tensor itself.

    For a loss that `count_items` cannot count: count what it divides by, and sum that. Exact in int64 and float64.

    Args:
        numbers: The same shape and dtype on all ranks. Moved off the CPU where the backend has no collectives for it.
        group: See `gradient_scale`.
    """
    return _reduced(numbers, dist.ReduceOp.SUM, group)


def largest_of_ranks(numbers: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the largest of each number over ranks; see `sum_over_ranks`."""
    return _reduced(numbers, dist.ReduceOp.MAX, group)


def all_gather(into: Tensor, part: Tensor, group: ProcessGroup | None) -> None:
    """Write what all ranks give, equally long and flat, one after the other into a tensor."""
    distributed: Any = dist
    gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor  # its older name
    gather(into, part, group)


def device_for(device: torch.device, group: ProcessGroup | None) -> torch.device:
    """Return where what is on a device must be for a collective: on the accelerator if the CPU has none."""
    if device.type == "cpu" and not any(backend in dist.get_backend(group) for backend in _ON_CPU):
        return torch.accelerator.current_accelerator() or device
    return device


def _reduced(numbers: Tensor, operation: dist.ReduceOp.RedOpType, group: ProcessGroup | None) -> Tensor:
    if gradient_scale(group) == 1:
        return numbers
    total = numbers.detach().to(device_for(numbers.device, group), copy=True)
    dist.all_reduce(total, operation, group)  # pyright: ignore[reportUnknownMemberType]
    return total


def _is_running() -> bool:
    return dist.is_available() and dist.is_initialized()
