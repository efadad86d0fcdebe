"""Simple preference optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe.training.losses.families.pairs import smoothed_logistic
from tensafe.training.losses.families.preference_lengths import AveragedLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class SimPO(AveragedLoss, name="simpo"):
    r"""Preference loss without a reference model: log-probabilities per token, apart by a margin.

    .. math:: \ell_i = -(1 - \epsilon) \log\sigma(x_i) - \epsilon \log\sigma(-x_i), \quad
        x_i = \beta\,\Big(\frac{\log\pi(y_c)}{|y_c|} - \frac{\log\pi(y_r)}{|y_r|}\Big) - \gamma

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        chosen_lengths: Tokens of each chosen completion, integers `[batch]`; a pair with an empty one does not count.
        rejected_lengths: Tokens of each rejected completion, likewise.
        chosen_logits: In place of `chosen_logps` and `chosen_lengths`: scores of the model, float `[batch chosen_seq
            vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps` and `rejected_lengths`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0, scale of the reward.
        gamma: :math:`\gamma` >= 0, the margin that the rewards should be apart by, in units of the reward (after beta).
        label_smoothing: :math:`\epsilon` in [0, 0.5), the share of pairs that are the wrong way round.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the log-probability per
            token, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above 0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats. A batch in which nothing counts gives 0.0,
        attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), or does not fit; on
            CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's `CPOTrainer` with `loss_type="simpo"`, `cpo_alpha=0`, `simpo_gamma=gamma` (it computes
        :math:`\beta\,(\cdot - \gamma / \beta)`, which is the same) and to Liger's. Where a recipe gives a ratio of
        gamma to beta, as the authors' code does, `gamma` is that ratio times `beta`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> batch = {"chosen_lengths": torch.tensor([5]), "rejected_lengths": torch.tensor([4])}
        >>> resolve_loss("simpo", beta=2.0, gamma=0.5)(pair, batch)["loss"]  # -log sigmoid(2 * (-2 + 3) - 0.5)
        tensor(0.2014)

    References:
        Meng, Xia and Chen, SimPO: Simple Preference Optimization with a Reference-Free Reward, 2024, arXiv:2405.14734.
        Label smoothing is not in the paper.
    """

    beta: float = Field(default=2.0, gt=0, description="Scale of the reward, a log-probability per token.")
    gamma: float = Field(default=0.5, ge=0, description="Margin that the rewards should be apart by, after beta.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of the pairs whose labels are expected to be swapped."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the logistic loss of the margin above gamma; see the class."""
        return smoothed_logistic(self.margin(pairs) - self.gamma, self.label_smoothing)

    def scores(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the log-probability per token."""
        return pairs.chosen.ratio_per_token, pairs.rejected.ratio_per_token
