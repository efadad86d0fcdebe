"""Margin ranking of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.contract import Alias
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class MarginRanking(ElementLoss, name="margin_ranking"):
    r"""Hinge loss that asks each chosen score to exceed its rejected one by a margin.

    .. math:: \ell_i = \max(0,\; m - (c_i - r_i))

    Args:
        chosen_scores: Scores :math:`c` of what should rank higher, float `[*pairs]`; also found as `logits_chosen`.
        rejected_scores: Scores :math:`r` of what should rank lower, same shape; also found as `logits_rejected`.
        margin: :math:`m` >= 0, in units of the scores: a pair that is apart by it or more costs nothing; 0 asks only
            for the right order.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `accuracy`, the share of pairs in the right order, in [0, 1].

    Returns:
        The loss, 0-d, >= 0, in units of the scores. An empty batch gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ; nothing is broadcast.
        LossConfigError: A kwarg is unknown or out of range.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> scores = {"chosen_scores": torch.tensor([3.0, 0.0]), "rejected_scores": torch.tensor([1.0, 0.5])}
        >>> resolve_loss("margin_ranking", margin=1.0)(scores, {})["loss"]  # (0 + 1.5) / 2
        tensor(0.7500)

    References:
        Equal to torch.nn.functional.margin_ranking_loss with target 1; its default margin is 0.
    """

    _family: ClassVar[str] = "ranking"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    margin: float = Field(default=1.0, ge=0, description="Distance by which the chosen score should be the higher one.")

    def compute(
        self,
        chosen_scores: Annotated[Float[Tensor, "*pairs"], Alias("logits_chosen")],
        rejected_scores: Annotated[Float[Tensor, "*pairs"], Alias("logits_rejected")],
    ) -> Elements:
        """Return the hinge of each pair; see the class."""
        lead = chosen_scores - rejected_scores
        return Elements(F.relu(self.margin - lead), metrics={"accuracy": lead > 0} if self.metrics else None)
