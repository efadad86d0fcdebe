r"""How likely given tokens are, and how unlikely others, a few rows at a time.

:math:`-\log(1 - p)` of a token that has nearly all of the probability is lost in rounding where :math:`p` comes first.
Only the likeliest token can have more than half: for that one, what the others have is added up without it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .lean import compute_dtype
from .row_scores import below_largest, exponentiate
from .rowwise import RowKernel, Rows, chunked

__all__ = ["logps_and_unlikelihood"]


def logps_and_unlikelihood(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    negatives: Int[Tensor, "*rows k"],
    *,
    ignore_index: int = -100,
    mean: bool = False,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    r"""Return the log-probability of each label, and what its negatives cost.

    .. math:: \log p_y, \quad \sum_{c} -\log(1 - p_c), \quad p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised scores :math:`x`, any float dtype; 16-bit ones are computed in float32.
        labels: Token ids :math:`y` in [0, vocab), int64, or `ignore_index`.
        negatives: Token ids :math:`c`, likewise. One that is the label does not count.
        ignore_index: Label of a row that does not count; id of a negative that does not.
        mean: Whether to take the mean over the negatives that count, rather than their sum.

    Returns:
        Both in nats, float32 (float64 for float64 logits), 0 where a row does not count, with a gradient of exactly
        zero. A single negative costs at most 73 nats, of float32, or 694.

    Raises:
        IndexError: On CPU, an id is outside [0, vocab) and is not `ignore_index`.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    kernel = _Unlikelihood(targets, negatives.reshape(-1, negatives.shape[-1]), ignore_index, mean=mean)
    log_probs, costs = chunked(kernel, flat)
    return log_probs.reshape(labels.shape), costs.reshape(labels.shape)


class _Negatives(NamedTuple):
    """Ids `[k negatives]` of some rows, how much each counts, and which of them are the likeliest of all classes."""

    ids: Tensor
    shares: Tensor
    is_top: Tensor


class _Unlikelihood(RowKernel):
    """Log-probability of a token, and the cost of others."""

    def __init__(self, labels: Tensor, negatives: Tensor, ignore_index: int, *, mean: bool) -> None:
        self.counts = labels != ignore_index
        self._targets = torch.where(self.counts, labels, 0).unsqueeze(1)
        counted = (negatives != ignore_index) & (negatives != labels.unsqueeze(1)) & self.counts.unsqueeze(1)
        self._ids = torch.where(counted, negatives, 0)
        self._counted = counted
        self._mean = mean

    def _negatives(self, at: slice, top: Tensor, dtype: torch.dtype) -> _Negatives:
        shares = self._counted[at].to(dtype)
        if self._mean:
            shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
        return _Negatives(self._ids[at], shares, self._ids[at] == top)

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return both; d log p_k / dz = [k = y] - p, d -log(1 - p_c) / dz_v = p_v - [v != c] p_v / (1 - p_c)."""
        below, _ = below_largest(rows.inputs[0], rows.scratch[0])
        targets = self._targets[rows.at]
        picked = _gather(below, targets)
        exponentials = exponentiate(below, rows.out[0])
        top = exponentials.argmax(1, keepdim=True)
        ids, shares, is_top = self._negatives(rows.at, top, exponentials.dtype)
        chosen = _gather(exponentials, ids)
        exponentials.scatter_(1, top, 0.0)
        rest = exponentials.sum(1, keepdim=True)
        total = rest + 1
        others = torch.where(is_top, rest + _floor(rest.dtype), total - chosen)
        costs = (shares * (total.log() - others.log())).sum(1)
        if rows.upstream is not None:
            of_logp, of_cost = rows.upstream
            softmax = below.copy_(exponentials).scatter_(1, top, 1.0).mul_(of_logp / total)
            of_top = (shares / total - (shares / others).masked_fill(is_top, 0.0)).sum(1, keepdim=True)
            of_rest = (shares / total - shares / others).sum(1, keepdim=True)
            own = (shares * chosen / others).masked_fill(is_top, 0.0)
            # in this order: of_rest may be as large as the exponentials are small
            exponentials.mul_(of_rest).scatter_(1, top, of_top).scatter_add_(1, ids, own).mul_(of_cost)
            exponentials.sub_(softmax).scatter_add_(1, targets, of_logp)
        return (picked - total.log()).squeeze(1), costs

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return both, by log-sum-exp."""
        assert self.counts is not None
        dtype = compute_dtype(inputs[0].dtype)
        clean = inputs[0].masked_fill(~self.counts.unsqueeze(1), 0.0).to(dtype)
        scores = clean - clean.detach().amax(1, keepdim=True)
        norm, top = torch.logsumexp(scores, 1, keepdim=True), scores.detach().argmax(1, keepdim=True)
        ids, shares, is_top = self._negatives(slice(None), top, dtype)
        of_rest = torch.logsumexp(scores.scatter(1, top, math.log(_floor(dtype))), 1, keepdim=True)
        safe = torch.where(is_top, -1.0, _gather(scores, ids) - norm)
        costs = torch.where(is_top, norm - of_rest, -torch.log1p(-safe.exp()))
        picked = (_gather(scores, self._targets) - norm).squeeze(1)
        return torch.where(self.counts, picked, 0.0), torch.where(self.counts, (shares * costs).sum(1), 0.0)


def _floor(dtype: torch.dtype) -> float:
    """Return what all but the likeliest class have at least, next to the 1 of that; its inverse may be added up."""
    return torch.finfo(dtype).tiny * 2**20


def _gather(scores: Tensor, ids: Tensor) -> Tensor:
    try:
        return scores.gather(1, ids)
    except RuntimeError as error:  # F.cross_entropy calls it an IndexError
        raise IndexError(f"Target is out of bounds: {error}") from None
