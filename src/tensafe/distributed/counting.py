"""What a loss will count over a window of micro-batches and all ranks, from the batches alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tensafe.training.losses.adapter import CombinedLoss, TypedLoss
from tensafe.training.losses.errors import LossConfigError, LossInputError, make_error, near_miss

from .batches import Counter
from .ranks import largest_of_ranks, sum_over_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.distributed import ProcessGroup

    from tensafe.training.losses.adapter import ResolvedLoss

    from .batches import Sizes

__all__ = ["count_items"]

_CURE = "count what it divides by, add that up with sum_over_ranks, and pass it as num_items_in_batch."


def count_items(
    loss: ResolvedLoss,
    batches: Iterable[Any],
    group: ProcessGroup | None = None,
    *,
    outputs: Sequence[str] = (),
    sizes: Sizes | Callable[[Any], Sizes] | None = None,
) -> dict[str, Any]:
    """Count what a loss will count over micro-batches and ranks: `loss(outputs, batch, **counts)` for each of them.

    The parts of an optimizer step then add up to the loss of the step, and so do their gradients; where ranks average
    gradients, multiply by `gradient_scale(group)`. It is exact for any typed loss: `compute` itself is called, with
    outputs that have shapes but no values and no memory, and says what counts.

    Args:
        loss: What `resolve_loss` returned, with the reduction that it will be called with.
        batches: The micro-batches of this rank until the next optimizer step, as the loss will be given them. None at
            all is fine: those of the other ranks are counted.
        group: The ranks that share the step: all data-parallel ones, and no others. None is the default group, or this
            process alone where `torch.distributed` is not initialised. Each of them must call.
        outputs: Names of tensors that the model will give, where the batches leave a choice that matters: a pair
            without a token counts for a loss of `chosen_logps`, and not for one of `chosen_logits`.
        sizes: Sizes of axes that count and that no tensor of a batch tells, such as `{"batch": 8}` for embeddings; or a
            function that gives them for a batch.

    Returns:
        `num_items_in_batch` for reduction `mean`, `num_sequences_in_batch` for the `sequence_*` ones, and nothing for
        `sum` and `none`, which divide by nothing. It is a 0-d float64 tensor; for a sum of losses a list with one entry
        per term, and for `mtp` a tensor of one number per head.

    Raises:
        LossConfigError: The loss is a plain callable, which does not say what it counts, or one value for a whole
            batch; or what it counts depends on what the model returns.
        LossInputError: A batch does not fit the loss, or does not tell what the count depends on. On the CPU the other
            ranks raise too.

    Example:
        >>> import torch
        >>> from tensafe.distributed import count_items
        >>> from tensafe.training.losses import resolve_loss
        >>> loss_fn = resolve_loss("token_ce")
        >>> batches = [{"labels": torch.tensor([[5, 1, 2, 3]])}, {"labels": torch.tensor([[5, 1, -100, -100]])}]
        >>> count_items(loss_fn, batches)  # nothing predicts the first label of a sequence
        {'num_items_in_batch': tensor(4., dtype=torch.float64)}
    """
    counters: list[Counter] = []
    plan = _plan(loss, counters, tuple(outputs))
    try:
        _check_names(loss, counters, outputs)
        for batch in batches:
            told = sizes(batch) if callable(sizes) else sizes or {}
            for counter in counters:
                counter.add(batch, told)
    except Exception:
        _total(counters, group, failed=True)  # lest the other ranks wait for this one
        raise
    totals = _total(counters, group)
    return tree_map(lambda leaf: totals[leaf] if isinstance(leaf, int) else leaf, plan)  # type: ignore[no-any-return]


def _plan(loss: ResolvedLoss, counters: list[Counter], outputs: tuple[str, ...]) -> dict[str, Any]:
    """Return the keywords of a call, with the number of a counter where its count belongs."""
    if isinstance(loss, TypedLoss):
        counter = Counter(loss, outputs)
        if counter.keyword is None:
            return {}
        counters.append(counter)
        return {counter.keyword: len(counters) - 1}
    joint = getattr(loss.loss, "joint_counts", None) if isinstance(loss, CombinedLoss) else None
    if joint is None:
        told = "holds other losses" if isinstance(loss, CombinedLoss) else "is a plain callable"
        more = " Or give it joint_counts(count), as weighted_sum has." if isinstance(loss, CombinedLoss) else ""
        raise make_error(
            LossConfigError,
            f"{told}, and does not say what it counts.",
            code="not-countable",
            loss=loss.name,
            hint=f"Write it as a typed loss, or {_CURE}{more}",
        )

    def plan_of(part: ResolvedLoss) -> dict[str, Any]:
        return _plan(part, counters, outputs)

    made: Mapping[str, Any] = joint(plan_of)
    return dict(made)


def _check_names(loss: ResolvedLoss, counters: Sequence[Counter], outputs: Sequence[str]) -> None:
    known = {spec.name for counter in counters for spec in counter.loss.contract.tensors}
    for name in outputs:
        if name not in known:
            nearest = near_miss(name, known)
            raise make_error(
                LossInputError,
                f"{name!r} in outputs is no tensor of this loss.",
                code="unknown-tensor",
                loss=loss.name,
                loc=("outputs",),
                hint=f"Did you mean {nearest!r}?" if nearest else None,
            )


def _total(counters: Sequence[Counter], group: ProcessGroup | None, *, failed: bool = False) -> list[Tensor]:
    """Return the counts of all ranks, in one all-reduce; in two where only batches tell how many numbers there are."""
    if not counters:
        return []
    widths = [counter.width for counter in counters]
    if None in widths:
        known = torch.tensor([counter.found for counter in counters])
        widths = [int(width) for width in largest_of_ranks(known, group)]
    flat = torch.cat([counter.padded(width or 0) for counter, width in zip(counters, widths, strict=True)])
    total = sum_over_ranks(torch.full_like(flat, torch.nan) if failed else flat, group)
    if not failed and total.device.type == "cpu" and bool(total.isnan().any()):  # elsewhere that would be a sync
        raise make_error(LossInputError, "another rank could not count; see its error.", code="failed-rank")
    parts = torch.split(total, [width or 0 for width in widths])
    return [part if each.is_apart else part.squeeze(0) for each, part in zip(counters, parts, strict=True)]
