"""Likelihood of the right order of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.ranking import ranked_elements, tops_the_rest
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Num
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class ListMLE(ElementLoss, name="listmle"):
    r"""Negative log-likelihood that scores, drawn one after the other, give the order of the relevance.

    .. math:: \ell = \sum_{i=1}^{K} \Big(\log \sum_{j \ge i} e^{s_{\pi(j)}} - s_{\pi(i)}\Big),
        \quad y_{\pi(1)} \ge y_{\pi(2)} \ge \dots

    Args:
        scores: Scores :math:`s` of the items of each list, float `[batch k]`; only their differences matter.
        relevance: Relevance :math:`y` of the same items, float or integers `[batch k]`: more is better, in any unit,
            for only their order :math:`\pi` is used. Items of the same relevance are taken in the order given.
        mask: True where an item is in the list, bool `[batch k]`, for lists of different length; all are where there
            is none. What is not in the list may stand anywhere and hold anything.
        top_k: Only the first :math:`k` >= 1 ranks are asked for, each against all that follow; None asks for all.
        reduction: See `ElementLoss`; `none` gives one value per list, a sum over its ranks: a longer list weighs more.
        metrics: Whether the result carries `accuracy`, the share of lists whose highest score is that of an item of the
            highest relevance, in [0, 1].

    Returns:
        The loss in nats, 0-d, >= 0. A list of one item costs 0. A list of no item does not count; a batch of none
        gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to ListMLELoss of sentence-transformers with respect_input_order=False; by default that takes the items in
        the order given, as `plackett_luce` does. There the order of items of the same relevance is up to the sort.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs, batch = {"scores": torch.zeros(1, 3)}, {"relevance": torch.tensor([[0, 2, 1]])}
        >>> round(resolve_loss("listmle")(outputs, batch)["loss"].item(), 4)  # ln 3 + ln 2 + ln 1
        1.7918

    References:
        Xia et al., Listwise Approach to Learning to Rank: Theory and Algorithm, ICML 2008.
    """

    _family: ClassVar[str] = "ranking"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("scores",))

    top_k: int | None = Field(
        default=None, ge=1, description="Ranks that are asked for, from the best; all by default."
    )

    def compute(
        self,
        scores: Float[Tensor, "batch k"],
        relevance: Num[Tensor, "batch k"],
        mask: Bool[Tensor, "batch k"] | None = None,
    ) -> Elements:
        """Return the loss of each list; see the class."""
        order = torch.argsort(relevance, dim=1, descending=True, stable=True)
        ranked, kept = scores.gather(1, order), None if mask is None else mask.gather(1, order)
        metrics = {"accuracy": _is_best_on_top(scores, relevance, mask)} if self.metrics else None
        return ranked_elements(ranked, kept, self.top_k, metrics)


def _is_best_on_top(scores: Tensor, relevance: Tensor, mask: Tensor | None) -> Tensor:
    known = relevance if mask is None else torch.where(mask, relevance, -torch.inf)
    return tops_the_rest(scores, known == known.amax(1, keepdim=True), mask)
