r"""Cross-entropy from hidden states and the weight of the output layer, without ever holding the logits.

A chunk of tokens at a time is projected to the vocabulary, scored, and its logits are turned into their gradient where
they stand, which is multiplied back to hidden states and weight at once: three matrix products in all, where what each
row's value is multiplied by is known beforehand (`linear_cross_entropy_dot`), and four where it is not.

On a CPU, 16-bit matrix products are slow, and a gradient of the weight that is summed up in 16 bits is wrong. There the
loop goes over blocks of the vocabulary instead, in float32: no row of the weight is touched by more than one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .cross_entropy import plain_cross_entropy
from .fused import Fused, dot, results
from .lean import compute_dtype, is_plain
from .projection import Projection, over_tokens
from .row_scores import Formula
from .sharding import is_spread
from .vocabulary_blocks import over_vocabulary

__all__ = ["linear_cross_entropy", "linear_cross_entropy_dot"]


def linear_cross_entropy(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    formula: Formula = Formula(),  # noqa: B008  # a value, like a number
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    class_weight: Float[Tensor, " vocab"] | None = None,
    token_weight: Float[Tensor, "*rows"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, "*rows"]:
    """Return `cross_entropy` of the logits `hidden @ weight.T + bias`.

    Args:
        hidden: Last hidden states, any float dtype.
        weight: Weight of the output layer. Dtypes that differ are promoted, as torch does.
        labels: Target ids in [0, vocab), int64, or `formula.ignore_index`.
        formula: What is scored, and how.
        bias: Bias of the output layer.
        class_weight: Weight of each class; None is 1 for every class.
        token_weight: What each row's value is multiplied by; 0 drops it, whatever it is.
        chunk_size: Tokens whose logits are held at once; None chooses by the shapes.

    Returns:
        Values in nats, float32 (float64 for float64), 0 where a row does not count. Hidden states, weight and bias get
        their gradients; a row that does not count adds nothing to them, whatever it holds (NaN too).

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
    """
    if is_spread(weight):
        from .linear_vocabulary_parallel import spread_linear_cross_entropy

        return spread_linear_cross_entropy(
            hidden,
            weight,
            labels,
            formula,
            bias=bias,
            class_weight=class_weight,
            token_weight=token_weight,
            chunk_size=chunk_size,
        )
    flat, weight, bias = _of_one_dtype(hidden.reshape(-1, hidden.shape[-1]), weight, bias)
    targets = labels.reshape(-1)
    if token_weight is not None:
        targets = formula.counted(targets, token_weight)
    fused = _LinearCrossEntropy(targets, _like(class_weight, flat), formula, chunk_size)
    run = fused.plain if is_plain(flat, weight, targets, bias, class_weight) else partial(results, fused)
    (values,) = run(flat, weight, bias)
    values = values.reshape(labels.shape)
    return values if token_weight is None else values * token_weight


def linear_cross_entropy_dot(
    hidden: Float[Tensor, "*rows hidden"],
    weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "*rows"],
    coefficients: Float[Tensor, "*rows"],
    formula: Formula = Formula(),  # noqa: B008  # a value, like a number
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    class_weight: Float[Tensor, " vocab"] | None = None,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times `linear_cross_entropy`, with the gradients made in the forward pass.

    Args:
        hidden: As in `linear_cross_entropy`.
        weight: Likewise.
        labels: Likewise.
        coefficients: What each row's value is multiplied by; 0 drops the row. Constants: they get no gradient.
        formula: As in `linear_cross_entropy`.
        bias: Likewise.
        class_weight: Likewise.
        chunk_size: Likewise.

    Returns:
        The sum, 0-d, in the dtype of the values.
    """
    if is_spread(weight):
        from .linear_vocabulary_parallel import spread_linear_cross_entropy_dot

        return spread_linear_cross_entropy_dot(
            hidden, weight, labels, coefficients, formula, bias=bias, class_weight=class_weight, chunk_size=chunk_size
        )
    flat, weight, bias = _of_one_dtype(hidden.reshape(-1, hidden.shape[-1]), weight, bias)
    targets = labels.reshape(-1)
    factors = coefficients.detach().reshape(-1).to(compute_dtype(flat.dtype))
    # a float16 gradient that is made before the loss scale is known would underflow; and blocks of the vocabulary
    # are gone over twice in any case
    if is_plain(flat, weight, targets, bias, class_weight) or flat.dtype is torch.float16 or _by_vocabulary(flat):
        values = linear_cross_entropy(
            flat,
            weight,
            targets,
            formula,
            bias=bias,
            class_weight=class_weight,
            token_weight=factors,
            chunk_size=chunk_size,
        )
        return values.sum()
    fused = _LinearCrossEntropy(targets, _like(class_weight, flat), formula, chunk_size)
    return dot(fused, factors, flat, weight, bias)


def _of_one_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return them in the smallest dtype that holds all, as torch promotes them."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if bias is not None:
        dtype = torch.promote_types(dtype, bias.dtype)
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _like(class_weight: Tensor | None, hidden: Tensor) -> Tensor | None:
    return None if class_weight is None else class_weight.detach().to(compute_dtype(hidden.dtype))


def _by_vocabulary(hidden: Tensor) -> bool:
    return hidden.device.type == "cpu" and hidden.dtype is not compute_dtype(hidden.dtype)


class _LinearCrossEntropy(Fused):
    """The operation on hidden states, weight and bias."""

    def __init__(
        self, labels: Tensor, class_weight: Tensor | None, formula: Formula, chunk_size: int | None = None
    ) -> None:
        self._rest = labels, class_weight, formula, chunk_size

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Go over the rows that count, by tokens or by blocks of the vocabulary."""
        hidden, weight, bias = inputs
        projection = Projection(hidden, weight, bias, *self._rest)
        labels, dtype = projection.labels, projection.dtype
        live = labels != projection.formula.ignore_index
        column = None if upstream is None else upstream[0]
        if column is not None:
            live = live & (column != 0)
        some, places = projection.only(live)
        if column is not None and places is not None:
            column = column[places]
        go_over = over_vocabulary if _by_vocabulary(hidden) else over_tokens
        some_values, gradients = go_over(some, column, wanted)
        if places is None:
            return (some_values,), gradients or ()
        values = torch.zeros(labels.shape[0], dtype=dtype, device=labels.device).index_copy_(0, places, some_values)
        if gradients is not None and gradients.hidden is not None:
            whole = torch.zeros_like(hidden).index_copy_(0, places, gradients.hidden)
            gradients = gradients._replace(hidden=whole)
        return (values,), gradients or ()

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the values, from the logits."""
        hidden, weight, bias = inputs
        labels, class_weight, formula, _ = self._rest
        dtype = compute_dtype(hidden.dtype)
        # what is ignored adds nothing to the gradient of the weight, NaN included
        clean = hidden.masked_fill((labels == formula.ignore_index).unsqueeze(1), 0.0).to(dtype)
        logits = F.linear(clean, weight.to(dtype), None if bias is None else bias.to(dtype))
        return (plain_cross_entropy(logits, labels, formula, class_weight),)
