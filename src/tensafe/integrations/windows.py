"""Micro-batches that know what the whole optimizer step counts, for trainers that show a loss one of them at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tensafe.distributed import count_items

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from tensafe.training.losses import ResolvedLoss

__all__ = ["CountedBatch", "CountedWindows"]


class CountedBatch(NamedTuple):
    """A micro-batch of an optimizer step.

    Attributes:
        batch: What the data loader gave.
        counts: What the loss divides by, over all micro-batches and ranks of the step; keywords of a call.
        size: Micro-batches that a process has in a step; the last one of an epoch may have fewer.
    """

    batch: Any
    counts: dict[str, Any]
    size: int


@dataclass(frozen=True)
class CountedWindows(Iterable[CountedBatch]):
    """A data loader whose batches come with what their optimizer step counts; reads a window of them ahead.

    Attributes:
        batches: The data loader, or any iterable. Each rank has as many batches as the others.
        loss: The loss, which says what counts.
        size: Micro-batches in an optimizer step.
        group: The data-parallel ranks, as for `count_items`.

    Example:
        >>> import torch
        >>> from tensafe.integrations.windows import CountedWindows
        >>> from tensafe.training.losses import resolve_loss
        >>> batches = [{"labels": torch.tensor([[5, 1, 2, 3]])}, {"labels": torch.tensor([[5, 1, -100, -100]])}]
        >>> for batch, counts, _ in CountedWindows(batches, resolve_loss("token_ce"), size=2):
        ...     print(int(counts["num_items_in_batch"]))
        4
        4
    """

    batches: Iterable[Any]
    loss: ResolvedLoss
    size: int
    group: ProcessGroup | None = None

    def __iter__(self) -> Iterator[CountedBatch]:
        batches = iter(self.batches)
        while window := list(islice(batches, self.size)):
            counts = count_items(self.loss, window, self.group)
            yield from (CountedBatch(batch, counts, self.size) for batch in window)

    def __len__(self) -> int:
        if isinstance(self.batches, Sized):
            return len(self.batches)
        raise TypeError(f"{type(self.batches).__name__} has no len()")
