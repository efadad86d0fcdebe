"""Lists of scores whose order is known: what the losses of a whole list share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe._lazy import torch
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["ranked_elements", "tops_the_rest"]


def ranked_elements(
    scores: Float[Tensor, "batch k"],
    mask: Bool[Tensor, "batch k"] | None,
    top_k: int | None,
    metrics: dict[str, Tensor] | None,
) -> Elements:
    r"""Return the negative log-probability of each order under the Plackett-Luce model; an empty list does not count.

    .. math:: \ell = \sum_{i < k} \Big(\log \sum_{j \ge i} e^{s_j} - s_i\Big)

    Args:
        scores: Scores :math:`s` in order of rank, best first.
        mask: What is in each list; None is all. What is not may stand anywhere.
        top_k: Ranks that are asked for; None is all.
        metrics: Passed on.
    """
    least = torch.finfo(scores.dtype).min
    if mask is not None:
        scores = torch.where(mask, scores, least)
    # only differences matter, and the gradient of logcumsumexp is the finer the nearer its values are to 0
    scores = scores - scores.detach().amax(1, keepdim=True)
    if mask is not None:
        # a finite number: the sum of nothing but -inf has a gradient of NaN
        scores = torch.where(mask, scores, least)
    costs = torch.logcumsumexp(scores.flip(1), 1).flip(1) - scores
    asked = _asked(scores, mask, top_k)
    if asked is not None:
        costs = torch.where(asked, costs, 0.0)
    return Elements(costs.sum(1), None if mask is None else mask.any(1), metrics)


def tops_the_rest(
    scores: Float[Tensor, "batch k"], top: Bool[Tensor, "batch k"], mask: Bool[Tensor, "batch k"] | None
) -> Bool[Tensor, " batch"]:
    """Return whether the highest score of each list is one of those at the top, and of those alone."""
    rest = ~top if mask is None else ~top & mask
    highest, runner_up = (torch.where(chosen, scores.detach(), -torch.inf).amax(1) for chosen in (top, rest))
    return highest > runner_up


def _asked(scores: Tensor, mask: Tensor | None, top_k: int | None) -> Tensor | None:
    if top_k is None:
        return mask
    if mask is None:
        return (torch.arange(scores.shape[1], device=scores.device) < top_k).expand_as(scores)
    return mask & (mask.cumsum(1) <= top_k)
