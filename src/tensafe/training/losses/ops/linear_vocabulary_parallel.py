"""Cross-entropy from hidden states whose output layer is spread over ranks: neither logits nor weight are gathered.

Each rank projects to its own classes, a chunk of tokens at a time, and measures them; two small all-reduces tell it
what the others have; then it projects once more and makes the gradients. The hidden states' is the sum over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from tensafe.training.losses.errors import LossInputError, make_error

from .fused import Fused, dot, results, weighted_sum
from .lean import clear_rows, compute_dtype
from .projection import Gradients, Projection, add_products, project
from .rank_scores import RankScores
from .row_scores import Formula
from .rowwise import slices
from .sharding import Sharding, as_peer, sharding_of
from .vocabulary_parallel import differentiate_twice

__all__ = ["spread_linear_cross_entropy", "spread_linear_cross_entropy_dot"]


def spread_linear_cross_entropy(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    formula: Formula,
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    class_weight: Float[Tensor, " vocab"] | None = None,
    token_weight: Num[Tensor, "*rows"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "*rows"]:
    """Return `linear_cross_entropy` where the weight is a DTensor.

    Args:
        hidden: Plain and whole on every rank, or a DTensor on the mesh of the weight; one that is sharded on rows along
            the vocabulary's dimension of the mesh (sequence parallel) is gathered.
        weight: Sharded on the vocabulary along one dimension of the mesh, or on none.
        labels: Plain and whole on every rank, or a DTensor.
        formula: As in `linear_cross_entropy`.
        bias: Plain and whole, or a DTensor.
        class_weight: Of all classes, on every rank.
        token_weight: Plain or a DTensor.
        chunk_size: As in `linear_cross_entropy`.

    Returns:
        Values, plain and whole where the labels are plain, else a DTensor. Gradients are laid out like their tensors.

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
        LossInputError: The weight is laid out in another way, or the ranks that share it differ in labels.
    """
    here = _Here.of(hidden, weight, bias)
    targets = here.sharding.local(labels)
    factors = None if token_weight is None else here.sharding.local(token_weight)
    shape, targets = targets.shape, targets.reshape(-1)
    if factors is not None:
        targets = formula.counted(targets, factors)
    (values,) = results(_SpreadLinear(here, targets, class_weight, formula, chunk_size), *here.tensors)
    values = values.reshape(shape)
    return here.sharding.values(values if factors is None else values * factors.to(values.dtype), labels)


def spread_linear_cross_entropy_dot(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    coefficients: Float[Tensor, "*rows"],
    formula: Formula,
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    class_weight: Float[Tensor, " vocab"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times those, with the gradients made in the forward pass."""
    here = _Here.of(hidden, weight, bias)
    states = here.tensors[0]
    factors = here.sharding.local(coefficients.detach()).reshape(-1).to(compute_dtype(states.dtype))
    targets = formula.counted(here.sharding.local(labels).reshape(-1), factors)
    fused = _SpreadLinear(here, targets, class_weight, formula, chunk_size)
    if states.dtype is torch.float16:  # a gradient that is made before the loss scale is known would underflow
        total = weighted_sum(results(fused, *here.tensors)[0], factors)
    else:
        total = dot(fused, factors, *here.tensors)
    return here.sharding.total(total, labels)


class _Here(NamedTuple):
    """What is on this rank.

    Attributes:
        sharding: Of the logits that would be made.
        tensors: Hidden states `[n hidden]`, weight and bias of this rank's classes, in one dtype.
    """

    sharding: Sharding
    tensors: tuple[Tensor, Tensor, Tensor | None]

    @classmethod
    def of(cls, hidden: Any, weight: Any, bias: Any) -> _Here:
        """Take what is here; what comes back as gradients is summed over the ranks that have another part of it."""
        from torch.distributed.tensor import Partial

        layout = sharding_of(weight, 0, "lm_head_weight")
        laid: tuple[Any, ...] = weight.placements
        if not layout.rows_are_whole:
            raise _cut_across(laid)
        rows = _rows(as_peer(hidden, weight), laid)
        of_hidden = [row if cut.is_replicate() else Partial() for row, cut in zip(rows, laid, strict=True)]
        of_weight = [cut if row.is_replicate() else Partial() for row, cut in zip(rows, laid, strict=True)]

        def here(whole: Tensor, placements: tuple[Any, ...], of_gradient: Sequence[Any]) -> Tensor:
            spread: Any = as_peer(whole, weight)
            local: Tensor = spread.redistribute(placements=placements).to_local(grad_placements=of_gradient)
            return local

        states = here(hidden, rows, of_hidden)
        parts = [states.reshape(-1, states.shape[-1])]
        parts += [here(part, laid, of_weight) for part in (weight, bias) if part is not None]
        dtype = reduce(torch.promote_types, [part.dtype for part in parts])
        flat, matrix, *offsets = (part.to(dtype) for part in parts)
        return cls(layout._replace(rows=rows), (flat, matrix, offsets[0] if offsets else None))


def _rows(hidden: Any, of_weight: Sequence[Any]) -> tuple[Any, ...]:
    """Return how the hidden states must be laid out: whole but for rows, and whole where the weight is cut."""
    from torch.distributed.tensor import Replicate, Shard

    def row(placement: Any, cut: Any) -> Any:
        is_of_hidden = placement.is_shard(hidden.ndim - 1)
        return placement if type(placement) is Shard and not is_of_hidden and cut.is_replicate() else Replicate()

    return tuple(row(*each) for each in zip(hidden.placements, of_weight, strict=True))


class _SpreadLinear(Fused):
    """The operation on what is on this rank."""

    def __init__(
        self, here: _Here, labels: Tensor, class_weight: Tensor | None, formula: Formula, chunk_size: int | None
    ) -> None:
        self._dtype = compute_dtype(here.tensors[0].dtype)
        self._class_weight = None if class_weight is None else class_weight.detach().to(self._dtype)
        self._labels, self._formula, self._chunk_size = labels, formula, chunk_size
        self._sharding = here.sharding
        self._rows: RankScores | None = None

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Measure and tell the others, once; then make the gradients, if they are wanted."""
        dtype = inputs[0].dtype
        if inputs[0].is_cpu:  # where a 16-bit product is slow
            inputs = [None if each is None else each.to(self._dtype) for each in inputs]
        hidden, weight, bias = inputs
        rest = self._labels, self._class_weight, self._formula, self._chunk_size
        projection = Projection(hidden, weight, bias, *rest)
        rows = self._rows = self._rows or self._measured(projection)
        if upstream is None:
            return (rows.values(),), (None,) * len(inputs)
        return (rows.values(),), self._gradients(projection, rows, upstream[0], wanted).cast(dtype)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Refuse."""
        differentiate_twice("lm_head_weight")

    def _measured(self, projection: Projection) -> RankScores:
        rows = RankScores(self._formula, self._labels, self._class_weight, self._sharding, dtype=self._dtype)
        for at, _, logits in _chunks(projection, rows.ignored):
            rows.measure(logits, logits, at)
        rows.share()
        return rows

    def _gradients(
        self, projection: Projection, rows: RankScores, upstream: Tensor, wanted: Sequence[bool]
    ) -> Gradients:
        gradients = Gradients.zeros(projection, wanted, hidden_dtype=projection.hidden.dtype)
        drop = rows.ignored | (upstream == 0)
        for at, hidden, logits in _chunks(projection, drop):
            squashed = rows.again(logits, logits, at)
            rows.differentiate(logits, squashed, at, upstream[at].unsqueeze(1))
            clear_rows(logits, drop[at])
            add_products(gradients, logits, hidden, projection.weight, at)
        return gradients


def _chunks(projection: Projection, drop: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a few tokens, their hidden states, 0 in rows that are dropped, and their logits in a buffer."""
    count, step = projection.labels.shape[0], projection.tokens_per_chunk
    weight = projection.weight
    buffer = torch.empty((step, weight.shape[0]), dtype=projection.dtype, device=weight.device)
    for at in slices(0, count, step):
        hidden = projection.hidden[at].masked_fill(drop[at].unsqueeze(1), 0.0)
        yield at, hidden, project(hidden, weight, projection.bias, buffer[: at.stop - at.start])


def _cut_across(placements: Sequence[Any]) -> LossInputError:
    return make_error(
        LossInputError,
        f"'lm_head_weight' is {placements}; expected Shard(0), its vocabulary, or Replicate().",
        code="placement",
        loc=("lm_head_weight",),
        hint="Redistribute it before the loss: lm_head_weight.redistribute(placements=[...]).",
    )
