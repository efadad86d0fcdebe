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

__all__ = ["Part", "Scores", "Side", "go_over", "info_nce", "info_nce_dot"]


class Scores(NamedTuple):
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
    fused, dtype = _InfoNCE(Scores(temperature, margin, symmetric)), compute_dtype(a.dtype)
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
    fused, dtype = _InfoNCE(Scores(temperature, margin, symmetric)), compute_dtype(a.dtype)
    factors = coefficients.detach().to(dtype)
    a, b = a.to(dtype), b.to(dtype)
    if is_lean(a.shape[0] * b.shape[0], a, b):
        return dot(fused, factors, a, b)
    return weighted_sum(fused.plain(a, b)[0], factors)


class _InfoNCE(Fused):
    """The operation on two sides."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Go over the rows of the score matrix."""
        rows = inputs[0].shape[0]
        given = None if upstream is None else upstream[0]
        values, gradients = go_over(inputs, self._scores, given, wanted, Part(0, rows, rows))
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


class Side:
    """Largest score and sum of exponentials over one axis: `[batch 1]` of the rows, `[1 batch]` of the columns.

    Args:
        shape: Of both.
        like: Has their dtype and device.
    """

    def __init__(self, shape: tuple[int, int], like: Tensor) -> None:
        self.largest = torch.full(shape, -torch.inf, dtype=like.dtype, device=like.device)
        self.total = torch.zeros(shape, dtype=like.dtype, device=like.device)

    def values(self, positive: Tensor, own: slice = slice(None)) -> Tensor:
        """Return the cross-entropy of each row, or of some columns, against the partner."""
        return (self.largest.view(-1)[own] - positive) + self.total.view(-1)[own].log()


class Part:
    """Which part of the score matrix is here: all of it, where no other rank has rows too.

    Attributes:
        start: How many rows other ranks have before those that are here.
        rows: How many are here.
        partners: How many rows there are on all ranks.
    """

    def __init__(self, start: int, rows: int, partners: int) -> None:
        self.start, self.rows, self.partners = start, rows, partners

    @property
    def own(self) -> slice:
        """The partners of the rows that are here."""
        return slice(self.start, self.start + self.rows)

    def share(self, columns: Side) -> None:
        """Turn what is known of the columns into what all ranks know of them."""

    def of_all(self, upstream: Tensor) -> Tensor:
        """Return what comes down to the values of all rows."""
        return upstream


def go_over(
    sides: Sequence[Tensor], scores: Scores, upstream: Tensor | None, wanted: Sequence[bool], part: Part
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """Return the values of the rows that are here, and the gradients of both sides.

    Args:
        sides: The rows that are here, and all candidates, partners first.
        scores: How similarities are scored.
        upstream: What comes down to each value; None where no gradient is wanted.
        wanted: Whether the gradient of each side is wanted. That of the candidates is what these rows add to it.
        part: Which rows are here.
    """
    a, b = sides
    rows, columns = Side((part.rows, 1), a), Side((1, part.partners), a)
    positive = torch.empty(part.rows, dtype=a.dtype, device=a.device)
    into = tuple(torch.zeros_like(side) if is_wanted else None for side, is_wanted in zip((a, b), wanted, strict=True))
    for at, scored, scratch in _chunks(a, b, scores, part):
        positive[at] = scored.diagonal(part.start + at.start)
        rows.largest[at] = scored.amax(1, keepdim=True)
        if scores.symmetric:
            _add_to_columns(columns, scored[:, : part.partners], scratch)
        exponentiate(scored.sub_(rows.largest[at]), scored)
        rows.total[at] = scored.sum(1, keepdim=True)
        if upstream is not None and not scores.symmetric:
            scored.mul_(upstream[at].unsqueeze(1) / rows.total[at])
            scored.diagonal(part.start + at.start).sub_(upstream[at])
            _add_products(into, scored, a, b, at, scores)
    scored = scratch = positive  # lets go of their room, before there is another
    forth = rows.values(positive)
    if not scores.symmetric:
        return forth, into
    part.share(columns)
    if upstream is not None:  # the sums over columns are known only now
        _differentiate_both(into, a, b, scores, (rows, columns), upstream, part)
    return (forth + columns.values(positive, part.own)) / 2, into


def _chunks(a: Tensor, b: Tensor, scores: Scores, part: Part) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield a slice, its rows of the score matrix, and room for those of the partners if both directions are wanted."""
    count, width = a.shape[0], b.shape[0]
    step = rows_per_chunk(count, width, a.device)
    room = torch.empty((step, width), dtype=a.dtype, device=a.device)
    scratch = torch.empty((step, part.partners), dtype=a.dtype, device=a.device) if scores.symmetric else room
    for at in slices(0, count, step):
        scored = room[: at.stop - at.start]
        torch.addmm(scored, a[at], b.T, beta=0, alpha=1 / scores.temperature, out=scored)
        if scores.margin:
            scored.diagonal(part.start + at.start).sub_(scores.margin / scores.temperature)
        yield at, scored, scratch[: at.stop - at.start]


def _add_to_columns(columns: Side, scored: Tensor, scratch: Tensor) -> None:
    largest = torch.maximum(columns.largest, scored.amax(0, keepdim=True))
    columns.total.mul_((columns.largest - largest).exp())
    columns.total.add_(exponentiate(torch.sub(scored, largest, out=scratch), scratch).sum(0, keepdim=True))
    columns.largest = largest


def _differentiate_both(
    into: Sequence[Tensor | None],
    a: Tensor,
    b: Tensor,
    scores: Scores,
    sides: tuple[Side, Side],
    upstream: Tensor,
    part: Part,
) -> None:
    rows, columns = sides
    of_columns = part.of_all(upstream) / (2 * columns.total)
    for at, scored, scratch in _chunks(a, b, scores, part):
        partners = scored[:, : part.partners]
        exponentiate(torch.sub(partners, columns.largest, out=scratch), scratch).mul_(of_columns)
        exponentiate(scored.sub_(rows.largest[at]), scored).mul_(upstream[at].unsqueeze(1) / (2 * rows.total[at]))
        partners.add_(scratch).diagonal(part.start + at.start).sub_(upstream[at])
        _add_products(into, scored, a, b, at, scores)


def _add_products(
    into: Sequence[Tensor | None], of_scores: Tensor, a: Tensor, b: Tensor, at: slice, scores: Scores
) -> None:
    of_a, of_b = into
    if of_a is not None:
        of_a[at].addmm_(of_scores, b, alpha=1 / scores.temperature)
    if of_b is not None:
        of_b.addmm_(of_scores.T, a[at], alpha=1 / scores.temperature)
