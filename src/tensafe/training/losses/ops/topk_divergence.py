r"""Divergence of a student from the few most probable classes of a teacher, a few rows at a time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .lean import compute_dtype
from .row_scores import exponentiate
from .rowwise import RowKernel, Rows, chunked, chunked_dot

__all__ = ["TopK", "topk_divergence", "topk_divergence_dot"]


class TopK(NamedTuple):
    r"""What is done with the classes that the teacher does not tell of, and how soft both distributions are.

    .. math:: \ell = \sum_j P_j (\log P_j - \log S_j)

    Attributes:
        tail: `bucket`: the rest of the classes is one more, of both distributions. `drop`: likewise, but its term is
            left out of the sum, which may then be negative. `renormalise_teacher`: the teacher has the given classes
            alone, the student all. `renormalise_both`: both have the given classes alone.
        temperature: :math:`T` > 0. The log-probabilities of the classes that are told apart, as they are at
            temperature 1, are divided by it and normalised again; for `renormalise_teacher` so are all of the
            student's. Nothing is multiplied by :math:`T^2`.
    """

    tail: Literal["bucket", "drop", "renormalise_teacher", "renormalise_both"] = "bucket"
    temperature: float = 1.0


def topk_divergence(
    logits: Float[Tensor, "*rows vocab"],
    teacher_ids: Int[Tensor, "*rows k"],
    teacher_logps: Float[Tensor, "*rows k"],
    formula: TopK = TopK(),  # noqa: B008  # a value, like a number
    *,
    counts: Bool[Tensor, "*rows"] | None = None,
) -> Float[Tensor, "*rows"]:
    """Return the divergence of each row; see `TopK`.

    Args:
        logits: Unnormalised scores of the student, any float dtype; 16-bit ones are computed in float32.
        teacher_ids: Classes in [0, vocab), int64, each once in a row.
        teacher_logps: Their log-probabilities at temperature 1, in nats; no gradient. -inf marks an entry that is not
            there, whatever its id. A row that has no entry has value 0.
        formula: Which divergence.
        counts: Which rows count; None is all.

    Returns:
        Values in nats, float32 (float64 for float64 logits), 0 where a row does not count, with a gradient of exactly
        zero whatever the row holds. A given class that the student cannot have makes it infinite; a rest that it cannot
        have does not: the teacher's is taken for rounding.

    Raises:
        IndexError: On CPU, an id is outside [0, vocab).
    """
    flat = logits.reshape(-1, logits.shape[-1])
    (values,) = chunked(_kernel(teacher_ids, teacher_logps, formula, counts, logits.dtype), flat)
    return values.reshape(logits.shape[:-1])


def topk_divergence_dot(
    logits: Float[Tensor, "*rows vocab"],
    teacher_ids: Int[Tensor, "*rows k"],
    teacher_logps: Float[Tensor, "*rows k"],
    coefficients: Float[Tensor, "*rows"],
    formula: TopK = TopK(),  # noqa: B008  # a value, like a number
) -> Float[Tensor, ""]:
    """Return the sum of coefficients times `topk_divergence`, with the gradient made in the forward pass.

    Args:
        logits: As in `topk_divergence`.
        teacher_ids: Likewise.
        teacher_logps: Likewise.
        coefficients: What each row's value is multiplied by; 0 drops the row. Constants: they get no gradient.
        formula: As in `topk_divergence`.

    Returns:
        The sum, 0-d, in the dtype of the values.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    factors = coefficients.detach().reshape(-1).to(compute_dtype(logits.dtype))
    return chunked_dot(_kernel(teacher_ids, teacher_logps, formula, factors != 0, logits.dtype), factors, flat)


def _kernel(ids: Tensor, logps: Tensor, formula: TopK, counts: Tensor | None, dtype: torch.dtype) -> _TopKernel:
    k = ids.shape[-1]
    teacher = logps.detach().reshape(-1, k).to(compute_dtype(dtype))
    return _TopKernel(ids.reshape(-1, k), teacher, formula, None if counts is None else counts.reshape(-1))


class _TopKernel(RowKernel):
    """The given classes and, but for `renormalise_both`, the rest of them as one more."""

    def __init__(self, ids: Tensor, logps: Tensor, formula: TopK, counts: Tensor | None) -> None:
        given = logps != -torch.inf
        some = given.any(1)
        self.counts = self._live = some if counts is None else some & counts
        self._given = given & self._live.unsqueeze(1)
        self._ids = torch.where(self._given, ids, 0)
        self._teacher = self._scores_of_teacher(logps, formula)
        self._formula = formula
        softened_first = formula.tail == "renormalise_teacher"
        self._rest_temperature = formula.temperature if softened_first else 1.0

    def _scores_of_teacher(self, logps: Tensor, formula: TopK) -> Tensor:
        """Return `[n k+1]` unnormalised log-probabilities of the teacher; rows that do not count hold some numbers."""
        clean = torch.where(self._live.unsqueeze(1), logps, 0.0)
        if formula.tail.startswith("renormalise"):
            rest = torch.full_like(clean[:, :1], -torch.inf)
        else:
            mass = torch.logsumexp(clean, 1, keepdim=True).clamp(max=0.0)
            rest = torch.where(mass > -0.7, (-torch.expm1(mass)).log(), torch.log1p(-mass.exp()))
        return torch.cat([clean, rest], 1) / formula.temperature

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return the divergence; with w the sum of the P that are added up, its gradient is S w - P for each score."""
        ids, given = self._ids[rows.at], self._given[rows.at]
        scores = rows.scratch[0].copy_(rows.inputs[0])
        picked = _gather(scores, ids)
        softened, total = self._rest_of(scores, ids, given, rows.out[0])
        values, log_s, p = self._compare(picked, softened, rows.at)
        if rows.upstream is not None:
            slope = log_s.exp_().mul_(p.sum(1, keepdim=True)).sub_(p)
            slope.mul_(rows.upstream[0] / self._formula.temperature)
            out = rows.out[0].zero_() if total is None else rows.out[0].mul_(slope[:, -1:] / total)
            out.scatter_add_(1, ids, slope[:, :-1])
        return (values,)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the divergence, by log-softmax."""
        clean = inputs[0].masked_fill(~self._live.unsqueeze(1), 0.0)
        scores = clean.to(compute_dtype(clean.dtype))
        picked = _gather(scores, self._ids)
        values, _, _ = self._compare(picked, self._plain_rest(scores), slice(None))
        return (torch.where(self._live, values, 0.0),)

    def _compare(self, picked: Tensor, rest: Tensor, at: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the divergence, the student's log-probabilities, and those of the teacher's that are added up."""
        picked = picked.masked_fill(~self._given[at], -torch.inf) / self._formula.temperature
        live = self._live[at].unsqueeze(1)
        log_s = torch.log_softmax(torch.where(live, torch.cat([picked, rest], 1), 0.0), 1)
        teacher = self._teacher[at]
        impossible = torch.nn.functional.pad(rest.detach() == -torch.inf, (teacher.shape[1] - 1, 0))
        log_p = torch.log_softmax(teacher.masked_fill(impossible, -torch.inf), 1)
        p = log_p.exp()
        if self._formula.tail == "drop":
            p = torch.cat([p[:, :-1], torch.zeros_like(p[:, -1:])], 1)
        return (p * torch.where(p == 0, 0.0, log_p - log_s)).sum(1), log_s, p

    def _rest_of(self, scores: Tensor, ids: Tensor, given: Tensor, out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the score of the rest; leave its exponentials in `out`, and return their sum. Spoils `scores`."""
        if self._formula.tail == "renormalise_both":
            return scores.new_full((scores.shape[0], 1), -torch.inf), None
        # the least of both, since several entries that are not there may have the id of one that is
        scores.scatter_reduce_(1, ids, torch.where(given, -torch.inf, torch.inf).to(scores.dtype), "amin")
        largest = scores.amax(1, keepdim=True)
        scores.sub_(largest.masked_fill(largest == -torch.inf, 0.0))
        if self._rest_temperature != 1.0:
            scores.mul_(1 / self._rest_temperature)
        total = exponentiate(scores, out).sum(1, keepdim=True)
        rest = largest / self._formula.temperature + total.log() * self._share
        return rest, total.masked_fill_(total == 0, 1.0)

    def _plain_rest(self, scores: Tensor) -> Tensor:
        if self._formula.tail == "renormalise_both":
            return torch.full_like(scores[:, :1], -torch.inf)
        hits = torch.zeros_like(scores, requires_grad=False)
        hits = hits.scatter_reduce(1, self._ids, self._given.to(scores.dtype), "amax")
        others = scores.masked_fill(hits.detach() != 0, -torch.inf)
        impossible = (others == -torch.inf).all(1, keepdim=True)
        safe = others.masked_fill(impossible, 0.0) / self._rest_temperature
        rest = torch.logsumexp(safe, 1, keepdim=True) * self._share
        return torch.where(impossible, -torch.inf, rest)

    @property
    def _share(self) -> float:
        """What the log-sum-exp of the rest is multiplied by."""
        return self._rest_temperature / self._formula.temperature


def _gather(scores: Tensor, ids: Tensor) -> Tensor:
    try:
        return scores.gather(1, ids)
    except RuntimeError as error:  # as for labels that are out of range
        raise IndexError(f"Teacher id is out of bounds: {error}") from None
