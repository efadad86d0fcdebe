r"""Log-probabilities of given tokens, and the entropy of what they were drawn from, a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .cross_entropy import cross_entropy
from .lean import compute_dtype
from .row_scores import Formula, below_largest, exponentiate
from .rowwise import RowKernel, Rows, chunked

__all__ = ["logps", "logps_and_entropy", "sequence_logps"]

_NOTHING = -1e4
"""A log-probability whose exponential is 0 in any dtype."""


def logps(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> Float[Tensor, "*rows"]:
    r"""Return the log-probability of each label.

    .. math:: \log p_y, \quad p = \mathrm{softmax}(x / T)

    Args:
        logits: Unnormalised scores :math:`x`, any float dtype; 16-bit ones are computed in float32.
        labels: Token ids :math:`y` in [0, vocab), int64, aligned with the logits, or `ignore_index`.
        temperature: :math:`T` > 0.
        ignore_index: Label of a row that does not count.

    Returns:
        Log-probabilities in nats, <= 0, float32 (float64 for float64 logits); 0 where a row does not count, with a
        gradient of exactly zero.

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
    """
    return -cross_entropy(logits, labels, Formula(ignore_index, scale=1 / temperature))


def sequence_logps(
    logits: Float[Tensor, "*batch seq vocab"],
    labels: Int[Tensor, "*batch seq"],
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> Float[Tensor, "*batch"]:
    """Return the log-probability of each sequence: the sum of `logps` over its tokens that count."""
    return logps(logits, labels, temperature=temperature, ignore_index=ignore_index).sum(-1)


def logps_and_entropy(
    logits: Float[Tensor, "*rows vocab"],
    labels: Int[Tensor, "*rows"],
    *,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    r"""Return `logps`, and the entropy of the same distribution from the same pass over the logits.

    .. math:: H = -\sum_v p_v \log p_v

    Args:
        logits: As in `logps`.
        labels: Likewise.
        temperature: Likewise.
        ignore_index: Likewise.

    Returns:
        Log-probabilities and entropies in nats, both differentiable, both 0 where a row does not count.

    Raises:
        IndexError: On CPU, a label is outside [0, vocab) and is not `ignore_index`.
    """
    flat, targets = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    log_probs, entropy = chunked(_Tokens(targets, 1 / temperature, ignore_index), flat)
    return log_probs.reshape(labels.shape), entropy.reshape(labels.shape)


class _Tokens(RowKernel):
    """Log-probability of a token, and the entropy."""

    def __init__(self, labels: Tensor, scale: float, ignore_index: int) -> None:
        self.counts = labels != ignore_index
        self._targets = torch.where(self.counts, labels, 0).unsqueeze(1)
        self._scale = scale

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return both; d log p_k / dz = [k = y] - p, dH / dz_k = -p_k (log p_k + H)."""
        targets = self._targets[rows.at]
        below, _ = below_largest(rows.inputs[0], rows.scratch[0])
        below.mul_(self._scale)
        picked = _gather(below, targets)
        exponentials = exponentiate(below, rows.out[0])
        total = exponentials.sum(1, keepdim=True)
        below.clamp_(min=_NOTHING)
        entropy = total.log() - (exponentials * below).sum(1, keepdim=True) / total
        if rows.upstream is not None:
            of_logp, of_entropy = (each * self._scale for each in rows.upstream)
            below.add_(entropy - total.log()).mul_(of_entropy).add_(of_logp)
            exponentials.mul_(below).mul_(-1 / total).scatter_add_(1, targets, of_logp)
        return (picked - total.log()).squeeze(1), entropy.squeeze(1)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return both, by log-softmax."""
        assert self.counts is not None
        dtype = compute_dtype(inputs[0].dtype)
        clean = inputs[0].masked_fill(~self.counts.unsqueeze(1), 0.0).to(dtype)
        log_p = torch.log_softmax(clean * self._scale, 1)
        picked = _gather(log_p, self._targets).squeeze(1)
        # a class of probability 0 has no share in the entropy, and no gradient of NaN
        finite = torch.where(log_p == -torch.inf, 0.0, log_p)
        entropy = -(log_p.exp() * finite).sum(1)
        return torch.where(self.counts, picked, 0.0), torch.where(self.counts, entropy, 0.0)


def _gather(scores: Tensor, targets: Tensor) -> Tensor:
    try:
        return scores.gather(1, targets)
    except RuntimeError as error:  # F.cross_entropy calls it an IndexError
        raise IndexError(f"Target is out of bounds: {error}") from None
