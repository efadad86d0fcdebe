"""Reward model from pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.loss import ElementLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class BradleyTerry(ElementLoss, name="bradley_terry"):
    r"""Negative log-likelihood that the chosen completion beats the rejected one: the usual loss of a reward model.

    .. math:: \ell_i = -(1 - \epsilon) \log \sigma(x_i) - \epsilon \log \sigma(-x_i) + c\,(r^+_i + r^-_i)^2, \quad
        x_i = r^+_i - r^-_i - m - m_i

    Args:
        chosen_rewards: Rewards :math:`r^+` of the chosen completions, float `[batch]`.
        rejected_rewards: Rewards :math:`r^-` of the rejected ones, float `[batch]`.
        margins: Margin :math:`m_i` of each pair, float `[batch]`, in units of the rewards: how much better the chosen
            one was found to be. None is 0.
        margin: :math:`m` >= 0, the same for all pairs; where there are `margins` too, both are added.
        center_rewards: :math:`c` >= 0, e.g. 0.01: weight of a term that keeps rewards around 0, for their differences
            alone leave the zero point free; None, as 0, leaves it out.
        label_smoothing: :math:`\epsilon` in [0, 0.5), the share of pairs that is taken to be labelled the wrong way
            round; 0 trusts all.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `reward_accuracy`, the share of pairs whose chosen reward is the higher one
            (margins aside; a tie is not), in [0, 1], `reward_margin`, the mean :math:`r^+ - r^-`, and `chosen_reward`
            and `rejected_reward`, the means of both.

    Returns:
        The loss in nats, 0-d, >= 0. An empty batch gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, or the shapes differ: `[batch 1]` against `[batch]` is refused, not
            broadcast.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to the loss of RewardTrainer of TRL: its column `margin` is `margins`, its center_rewards_coefficient
        is `center_rewards`. Without margins and centering `plackett_luce` of two.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> rewards = {"chosen_rewards": torch.tensor([1.0]), "rejected_rewards": torch.tensor([1.0])}
        >>> round(resolve_loss("bradley_terry", center_rewards=0.01)(rewards, {})["loss"].item(), 4)  # ln 2 + 0.01 * 4
        0.7331

    References:
        Christiano et al., Deep Reinforcement Learning from Human Preferences, 2017, arXiv:1706.03741, section 2.2.3.
        Margins: Touvron et al., Llama 2, 2023, arXiv:2307.09288, equation 2. Centering: Eisenstein et al., Helping or
        Herding? Reward Model Ensembles Mitigate but do not Eliminate Reward Hacking, 2023, arXiv:2312.09244.
    """

    _family: ClassVar[str] = "reward model"
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    margin: float = Field(
        default=0.0,
        ge=0,
        description="How much higher every chosen reward should be, besides any margins of the batch.",
    )
    center_rewards: float | None = Field(
        default=None,
        ge=0,
        description="Weight of (chosen + rejected)^2, which keeps rewards around 0; none by default.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs taken to be labelled the wrong way round."
    )

    def compute(
        self,
        chosen_rewards: Float[Tensor, " batch"],
        rejected_rewards: Float[Tensor, " batch"],
        margins: Float[Tensor, " batch"] | None = None,
    ) -> Elements:
        """Return the loss of each pair; see the class."""
        lead = chosen_rewards - rejected_rewards
        x = lead - self.margin if margins is None else lead - self.margin - margins
        values = -F.logsigmoid(x)
        if self.label_smoothing:
            values = (1 - self.label_smoothing) * values - self.label_smoothing * F.logsigmoid(-x)
        if self.center_rewards:
            values = values + self.center_rewards * (chosen_rewards + rejected_rewards).square()
        return Elements(values, metrics=self._metrics(chosen_rewards, rejected_rewards) if self.metrics else None)

    def _metrics(self, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
        return {
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": chosen > rejected,
        }
