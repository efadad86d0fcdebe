r"""InfoNCE between two sides of pairs, a few rows of the similarity matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .fused import Fused, dot, results, weighted_sum
from .lean import compute_dtype, is_lean, rows_per_chunk
from .row_scores import exponentiate
from .rowwise import slices

__all__ = ["info_nce", "info_nce_dot"]


class _Scores(NamedTuple):
    """How similarities are scored."""

    temperature: float
    margin: float
    symmetric: bool


def info_nce(
    a: Float[Tensor, "batch hidden"],
    b: Float[Tensor, "candidates hidden"],
    *,
    temperature: float,
    margin: float = 0.0,
    symmetric: bool = False,
) -> Float[Tensor, " batch"]:
    r"""Return the cross-entropy of each row's scores against its own partner.

    .. math:: \ell_i = -\log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}, \quad s_{ij} = (a_i \cdot b_j - m\,[i = j]) / \tau

    Args:
        a: One side of the pairs, any float dtype; 16-bit ones are computed in float32.
        b: The other side; row i is the partner of row i. Rows beyond the last partner are further negatives, of every
            row of `a`.
        temperature: :math:`\tau` > 0.
        margin: :math:`m`, taken off the similarity of each pair.
        symmetric: Whether the value is the mean of both directions, :math:`s` and :math:`s^\top`; in the second the
            partners look for theirs among the rows of `a`, and further negatives look for nothing.

    Returns:
        Values in nats, float32 (float64 for float64).
    """
    fused, dtype = _InfoNCE(_Scores(temperature, margin, symmetric)), compute_dtype(a.dtype)
    a, b = a.to(dtype), b.to(dtype)
    lean = is_lean(a.shape[0] * b.shape[0], a, b)
    return (results(fused, a, b) if lean else fused.plain(a, b))[0]


def info_nce_dot(
    a: Float[Tensor, "batch hidden"],
    b: Float[Tensor, "candidates hidden"],
    coefficients: Float[Tensor, " batch"],
    *,
    temperature: float,
    margin: float = 0.0,
    symmetric: bool = False,
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times `info_nce`, with the gradients made in the forward pass.

    Args:
        a: As in `info_nce`.
        b: Likewise.
        coefficients: What each row's value is multiplied by. Constants: they get no gradient.
        temperature: As in `info_nce`.
        margin: Likewise.
        symmetric: Likewise.

    Returns:
        The sum, 0-d, in the dtype of the values.
    """
    fused, dtype = _InfoNCE(_Scores(temperature, margin, symmetric)), compute_dtype(a.dtype)
    factors = coefficients.detach().to(dtype)
    a, b = a.to(dtype), b.to(dtype)
    if is_lean(a.shape[0] * b.shape[0], a, b):
        return dot(fused, factors, a, b)
    return weighted_sum(fused.plain(a, b)[0], factors)


class _InfoNCE(Fused):
    """The operation on two sides."""

    def __init__(self, scores: _Scores) -> None:
        self._scores = scores

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Go over the rows of the score matrix."""
        values, gradients = _go_over(inputs, self._scores, None if upstream is None else upstream[0], wanted)
        return (values,), gradients

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the values, from the whole score matrix."""
        scores, (a, b) = self._scores, inputs
        similarity = a @ b.T
        if scores.margin:
            similarity = similarity - scores.margin * torch.eye(*similarity.shape, dtype=a.dtype, device=a.device)
        scaled = similarity / scores.temperature
        positive = scaled.diagonal()
        forth = torch.logsumexp(scaled, 1) - positive
        if not scores.symmetric:
            return (forth,)
        return ((forth + torch.logsumexp(scaled[:, : a.shape[0]], 0) - positive) / 2,)


class _Side:
    """Largest score and sum of exponentials over one axis: `[batch 1]` of the rows, `[1 batch]` of the columns."""

    def __init__(self, shape: tuple[int, int], like: Tensor) -> None:
        self.largest = torch.full(shape, -torch.inf, dtype=like.dtype, device=like.device)
        self.total = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def values(self, positive: Tensor) -> Tensor:
        return (self.largest.view(-1) - positive) + self.total.view(-1).log()


def _go_over(
    sides: Sequence[Tensor], scores: _Scores, upstream: Tensor | None, wanted: Sequence[bool]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    a, b = sides
    count = a.shape[0]
    rows, columns = _Side((count, 1), a), _Side((1, count), a)
    positive = torch.empty(count, dtype=a.dtype, device=a.device)
    into = tuple(torch.zeros_like(side) if is_wanted else None for side, is_wanted in zip((a, b), wanted, strict=True))
    for at, scored, scratch in _chunks(a, b, scores):
        positive[at] = scored.diagonal(at.start)
        rows.largest[at] = scored.amax(1, keepdim=True)
        if scores.symmetric:
            _add_to_columns(columns, scored[:, :count], scratch)
        exponentiate(scored.sub_(rows.largest[at]), scored)
        rows.total[at] = scored.sum(1, keepdim=True)
        if upstream is not None and not scores.symmetric:
            scored.mul_(upstream[at].unsqueeze(1) / rows.total[at])
            scored.diagonal(at.start).sub_(upstream[at])
            _add_products(into, scored, a, b, at, scores)
    scored = scratch = positive  # lets go of their room, before there is another
    if upstream is not None and scores.symmetric:  # the sums over columns are known only now
        _differentiate_both(into, a, b, scores, (rows, columns), upstream)
    forth = rows.values(positive)
    return (forth + columns.values(positive)) / 2 if scores.symmetric else forth, into


def _chunks(a: Tensor, b: Tensor, scores: _Scores) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a slice, its rows of the score matrix, and room for those of the partners if both directions are wanted."""
    count, width = a.shape[0], b.shape[0]
    step = rows_per_chunk(count, width, a.device)
    room = torch.empty((step, width), dtype=a.dtype, device=a.device)
    scratch = torch.empty((step, count), dtype=a.dtype, device=a.device) if scores.symmetric else room
    for at in slices(0, count, step):
        scored = room[: at.stop - at.start]
        torch.addmm(scored, a[at], b.T, beta=0, alpha=1 / scores.temperature, out=scored)
        if scores.margin:
            scored.diagonal(at.start).sub_(scores.margin / scores.temperature)
        yield at, scored, scratch[: at.stop - at.start]


def _add_to_columns(columns: _Side, scored: Tensor, scratch: Tensor) -> None:
    largest = torch.maximum(columns.largest, scored.amax(0, keepdim=True))
    columns.total.mul_((columns.largest - largest).exp())
    columns.total.add_(exponentiate(torch.sub(scored, largest, out=scratch), scratch).sum(0, keepdim=True))
    columns.largest = largest


def _differentiate_both(
    into: Sequence[Tensor | None],
    a: Tensor,
    b: Tensor,
    scores: _Scores,
    sides: tuple[_Side, _Side],
    upstream: Tensor,
) -> None:
    rows, columns = sides
    for at, scored, scratch in _chunks(a, b, scores):
        partners = scored[:, : a.shape[0]]
        exponentiate(torch.sub(partners, columns.largest, out=scratch), scratch).mul_(upstream / (2 * columns.total))
        exponentiate(scored.sub_(rows.largest[at]), scored).mul_(upstream[at].unsqueeze(1) / (2 * rows.total[at]))
        partners.add_(scratch).diagonal(at.start).sub_(upstream[at])
        _add_products(into, scored, a, b, at, scores)


def _add_products(
    into: Sequence[Tensor | None], of_scores: Tensor, a: Tensor, b: Tensor, at: slice, scores: _Scores
) -> None:
    of_a, of_b = into
    if of_a is not None:
        of_a[at].addmm_(of_scores, b, alpha=1 / scores.temperature)
    if of_b is not None:
        of_b.addmm_(of_scores.T, a[at], alpha=1 / scores.temperature)
