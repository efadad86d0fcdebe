"""Pairs of completions of one prompt, the better and the worse, and the formulas that several of their losses share."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tensafe._lazy import F, torch
from tensafe.training.losses.errors import missing_tensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Completions", "Pairs", "of_same_rank", "smoothed_logistic"]


class Completions(NamedTuple):
    """The chosen completions of a batch, or the rejected ones.

    Attributes:
        side: `chosen` or `rejected`, for messages.
        logps: Log-probability of each completion, summed over its tokens, `[batch]`.
        ref_logps: The same under the reference model; None where there is none.
        lengths: Tokens of each completion, at least 1, in the dtype of `logps`; None if they are not known.
        counts: Whether each completion has a token at all; None if that is not known.
    """

    side: str
    logps: Tensor
    ref_logps: Tensor | None = None
    lengths: Tensor | None = None
    counts: Tensor | None = None

    @property
    def reference(self) -> Tensor:
        """Log-probability under the reference model, 0 where there is none."""
        return torch.zeros_like(self.logps) if self.ref_logps is None else self.ref_logps

    @property
    def ratio(self) -> Tensor:
        """Log-probability above that of the reference model, or as it is where there is none."""
        return self.logps if self.ref_logps is None else self.logps - self.ref_logps

    @property
    def ratio_per_token(self) -> Tensor:
        """The mean of `ratio` over the tokens."""
        if self.lengths is None:
            raise missing_tensor(f"{self.side}_lengths", f"{self.side}_logits")
        return self.ratio / self.lengths

    def where(self, counts: Tensor) -> Completions:
        """Return the same with zeros where a pair does not count, so that no NaN there can reach a gradient."""
        ref_logps = None if self.ref_logps is None else torch.where(counts, self.ref_logps, 0.0)
        return self._replace(logps=torch.where(counts, self.logps, 0.0), ref_logps=ref_logps)


class Pairs(NamedTuple):
    """What the loss of a pair is made of.

    Attributes:
        chosen: The better completions.
        rejected: The worse ones.
        given_nll: `chosen_nll`, if it was given.
        counts: Which pairs count; None if all do.
    """

    chosen: Completions
    rejected: Completions
    given_nll: Tensor | None = None
    counts: Tensor | None = None

    @property
    def chosen_nll(self) -> Tensor:
        """Negative log-likelihood of the chosen completion, per token."""
        if self.given_nll is not None:
            return self.given_nll
        if self.chosen.lengths is None:
            raise missing_tensor("chosen_nll", "chosen_lengths", "chosen_logits")
        return -self.chosen.logps / self.chosen.lengths


def smoothed_logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    r"""Return :math:`-(1 - \epsilon) \log \sigma(x) - \epsilon \log \sigma(-x)`."""
    if not label_smoothing:
        return -F.logsigmoid(margin)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def of_same_rank(numbers: Tensor, others: Tensor, counts: Tensor | None) -> Tensor:
    """Return, for each of `numbers`, that one of `others` which has the same rank among its own.

    Args:
        numbers: `[batch]`.
        others: `[batch]`.
        counts: Which of both count, `[batch]`; None if all do. What does not count has no rank, and gets 0.
    """
    if counts is not None:  # they go last, and so to each other
        numbers, others = torch.where(counts, numbers, torch.inf), torch.where(counts, others, torch.inf)
    # to sort the positions of a sorted order gives ranks
    ranks = numbers.detach().argsort(stable=True).argsort(stable=True)
    matched = others.sort(stable=True).values.gather(0, ranks)
    return matched if counts is None else torch.where(counts, matched, 0.0)
