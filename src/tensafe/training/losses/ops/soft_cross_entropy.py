r"""Cross-entropy against a distribution over the vocabulary, a few rows at a time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .lean import compute_dtype
from .row_scores import below_largest, exponentiate
from .rowwise import RowKernel, Rows, chunked

__all__ = ["soft_cross_entropy"]


def soft_cross_entropy(
    logits: Float[Tensor, "*rows vocab"],
    targets: Float[Tensor, "*rows vocab"],
    *,
    counts: Bool[Tensor, "*rows"] | None = None,
) -> tuple[Float[Tensor, "*rows"], Float[Tensor, "*rows"]]:
    r"""Return the cross-entropy of each row, and what its targets add up to.

    .. math:: -\sum_v q_v \log p_v, \quad p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised scores :math:`x`, any float dtype; 16-bit ones are computed in float32.
        targets: Probabilities :math:`q` >= 0, likewise. They get a gradient too, where they want one.
        counts: Which rows count; None is all.

    Returns:
        Values in nats, and the sums of the targets, float32 (float64 for float64 logits), both 0 where a row does not
        count, with a gradient of exactly zero whatever the row holds. A class of target 0 adds nothing, even where its
        probability is 0; one of target > 0 and probability 0 makes the value infinite.
    """
    flat = [each.reshape(-1, each.shape[-1]) for each in (logits, targets)]
    kernel = _SoftCrossEntropy(None if counts is None else counts.reshape(-1))
    values, mass = chunked(kernel, *flat)
    return values.reshape(logits.shape[:-1]), mass.reshape(logits.shape[:-1])


class _SoftCrossEntropy(RowKernel):
    """The inputs are logits and targets, the results the cross-entropy and the sum of the targets."""

    def __init__(self, counts: Tensor | None) -> None:
        self.counts = counts

    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return both; the gradient is (sum q) p - q for the logits, -log p and 1 for the targets."""
        below, _ = below_largest(rows.inputs[0], rows.scratch[0])
        exponentials = exponentiate(below, rows.out[0])
        targets = rows.scratch[1].copy_(rows.inputs[1])
        total, mass = exponentials.sum(1, keepdim=True), targets.sum(1, keepdim=True)
        log_p = below.sub_(total.log())
        log_p.masked_fill_((targets == 0) & (exponentials == 0), 0.0)
        values = -torch.mul(targets, log_p, out=rows.out[1]).sum(1, keepdim=True)
        if rows.upstream is not None:
            of_value, of_mass = rows.upstream
            exponentials.mul_(of_value * mass / total).addcmul_(targets, of_value, value=-1)
            torch.mul(log_p, -of_value, out=rows.out[1]).add_(of_mass)
        return values.squeeze(1), mass.squeeze(1)

    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return both, by log-softmax."""
        dtype = compute_dtype(inputs[0].dtype)
        logits, targets = (self._clean(each).to(dtype) for each in inputs)
        log_p = torch.log_softmax(logits, 1)
        log_p = torch.where((targets == 0) & (log_p == -torch.inf), 0.0, log_p)
        return self._kept(-(targets * log_p).sum(1)), self._kept(targets.sum(1))

    def _clean(self, matrix: Tensor) -> Tensor:
        return matrix if self.counts is None else matrix.masked_fill(~self.counts.unsqueeze(1), 0.0)

    def _kept(self, numbers: Tensor) -> Tensor:
        return numbers if self.counts is None else torch.where(self.counts, numbers, 0.0)
