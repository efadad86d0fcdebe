r"""Cross-entropy of logits whose vocabulary is spread over ranks, by two small all-reduces and no gathering.

Each rank goes over its own classes once, and tells the others what `rank_scores` says. The gradient needs no
communication. The logits are never written to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error

from .fused import Fused, dot, results, weighted_sum
from .lean import clear_rows, compute_dtype, rows_per_chunk
from .rank_scores import RankScores
from .row_scores import Formula
from .rowwise import slices
from .sharding import Sharding, sharding_of

__all__ = ["differentiate_twice", "spread_cross_entropy", "spread_cross_entropy_dot"]


def spread_cross_entropy(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    formula: Formula,
    *,
    class_weight: Float[Tensor, " vocab"] | None = None,
    token_weight: Num[Tensor, "*rows"] | None = None,
) -> Float[Tensor, "*rows"]:
    """Return `cross_entropy` of logits that are a DTensor.

    Args:
        logits: A DTensor that is sharded on its vocabulary, on its rows, on both or on none.
        labels: Plain and whole on every rank, or a DTensor.
        formula: As in `cross_entropy`.
        class_weight: Of all classes, on every rank.
        token_weight: As in `cross_entropy`; plain or a DTensor.

    Returns:
        Values, plain and whole where the labels are plain, else a DTensor. The gradient of the logits is a DTensor of
        their placements.

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
        LossInputError: The logits are laid out in another way, or the ranks that share a vocabulary differ in labels.
    """
    sharding = sharding_of(logits)
    local, targets = _local(logits), sharding.local(labels)
    weight = None if token_weight is None else sharding.local(token_weight)
    shape, targets = targets.shape, targets.reshape(-1)
    if weight is not None:
        targets = formula.counted(targets, weight)
    fused = _Spread(targets, _like(class_weight, local), formula, sharding)
    (values,) = results(fused, local)
    values = values.reshape(shape)
    return sharding.values(values if weight is None else values * weight.to(values.dtype), labels)


def spread_cross_entropy_dot(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    coefficients: Float[Tensor, "*rows"],
    formula: Formula,
    *,
    class_weight: Float[Tensor, " vocab"] | None = None,
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times `spread_cross_entropy`, with the gradient made in the forward pass."""
    sharding = sharding_of(logits)
    local, targets = _local(logits), sharding.local(labels).reshape(-1)
    factors = sharding.local(coefficients.detach()).reshape(-1).to(compute_dtype(local.dtype))
    targets = formula.counted(targets, factors)
    fused = _Spread(targets, _like(class_weight, local), formula, sharding)
    if local.dtype is torch.float16:  # a gradient that is made before the loss scale is known would underflow
        total = weighted_sum(results(fused, local)[0], factors)
    else:
        total = dot(fused, factors, local)
    return sharding.total(total, labels)


def differentiate_twice(name: str) -> NoReturn:
    """Refuse what asks for a gradient that can be differentiated itself."""
    raise make_error(
        LossInputError,
        f"'{name}' is spread over ranks: its gradient can be neither differentiated once more (create_graph) nor "
        "asked for many times at once (is_grads_batched).",
        code="spread-double-backward",
        loc=(name,),
        hint=f"Gather it before the loss: {name}.full_tensor().",
    )


class _Spread(Fused):
    """The operation on this rank's `[n classes]` logits."""

    def __init__(self, labels: Tensor, class_weight: Tensor | None, formula: Formula, sharding: Sharding) -> None:
        self._rest = formula, labels, class_weight, sharding
        self._rows: RankScores | None = None

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Measure and tell the others, once; then make the gradient, if it is wanted."""
        (logits,) = inputs
        rows = self._rows = self._rows or self._measured(logits)
        if upstream is None:
            return (rows.values(),), (None,)
        into = torch.empty_like(logits)
        column = upstream[0].unsqueeze(1)
        for at, chunk, out in _chunks(logits, rows.dtype):
            squashed = rows.again(chunk, out, at)
            rows.differentiate(out, squashed, at, column[at])
            into[at].copy_(out)
        clear_rows(into, rows.ignored | (upstream[0] == 0))
        return (rows.values(),), (into,)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Refuse."""
        differentiate_twice("logits")

    def _measured(self, logits: Tensor) -> RankScores:
        rows = RankScores(*self._rest, dtype=compute_dtype(logits.dtype))
        for at, chunk, out in _chunks(logits, rows.dtype):
            rows.measure(chunk, out, at)
        rows.share()
        return rows


def _local(logits: Any) -> Tensor:
    local: Tensor = logits.to_local(grad_placements=logits.placements)
    return local.reshape(-1, local.shape[-1]) if local.shape[-1] else local.reshape(local.shape[:-1].numel(), 0)


def _like(class_weight: Tensor | None, logits: Tensor) -> Tensor | None:
    return None if class_weight is None else class_weight.detach().to(compute_dtype(logits.dtype))


def _chunks(logits: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a slice, its rows, and a buffer for as many."""
    count, width = logits.shape
    step = rows_per_chunk(count, width, logits.device)
    scratch = torch.empty((step, width), dtype=dtype, device=logits.device)
    for at in slices(0, count, step):
        yield at, logits[at], scratch[: at.stop - at.start]
