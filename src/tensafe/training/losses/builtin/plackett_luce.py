"""Likelihood of a ranking of completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.families.ranking import ranked_elements, tops_the_rest
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class PlackettLuce(ElementLoss, name="plackett_luce"):
    r"""Negative log-likelihood of a ranking under the Plackett-Luce model: a reward model from rankings, best first.

    .. math:: \ell = \sum_{i=1}^{K} \Big(\log \sum_{j \ge i} e^{s_j} - s_i\Big)

    Args:
        scores: Rewards :math:`s` of the completions of each prompt in order of rank, best first, float `[batch k]`;
            only their differences matter.
        mask: True where there is a completion, bool `[batch k]`, for rankings of different length; all are there
            without it. What is not there may stand anywhere and hold anything.
        top_k: Only the first :math:`k` >= 1 ranks are asked for, each against all that follow; None asks for all, 1
            only for the best.
        reduction: See `ElementLoss`; `none` gives one value per ranking, a sum over its ranks: a longer one weighs
            more.
        metrics: Whether the result carries `accuracy`, the share of rankings whose best completion has the highest
            score, in [0, 1].

    Returns:
        The loss in nats, 0-d, >= 0. A ranking of one costs 0. One of none does not count; a batch of these gives 0.0,
        attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        With two completions it is `bradley_terry`. Equal to ListMLELoss of sentence-transformers, which by default
        takes its input as ranked; `listmle` sorts by a relevance first.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"scores": torch.zeros(1, 3)}
        >>> round(resolve_loss("plackett_luce")(outputs, {})["loss"].item(), 4)  # ln 3 + ln 2 + ln 1
        1.7918

    References:
        Plackett, The Analysis of Permutations, 1975; Luce, Individual Choice Behavior, 1959.
    """

    _family: ClassVar[str] = "reward model"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True, shift_invariant=("scores",))

    top_k: int | None = Field(
        default=None, ge=1, description="Ranks that are asked for, from the best; all by default."
    )

    def compute(self, scores: Float[Tensor, "batch k"], mask: Bool[Tensor, "batch k"] | None = None) -> Elements:
        """Return the loss of each ranking; see the class."""
        metrics = {"accuracy": _is_best_on_top(scores, mask)} if self.metrics else None
        return ranked_elements(scores, mask, self.top_k, metrics)


def _is_best_on_top(scores: Tensor, mask: Tensor | None) -> Tensor:
    places = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    return tops_the_rest(scores, places & (places.cumsum(1) == 1), mask)
