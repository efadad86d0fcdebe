"""Efficient exact optimisation of preferences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.preference import GainLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class EXO(GainLoss, name="exo"):
    r"""Reverse KL divergence from the model's preference between two completions to that of the labels.

    .. math:: \ell_i = q_i \log\frac{q_i}{1 - \epsilon} + (1 - q_i) \log\frac{1 - q_i}{\epsilon}, \quad
        q_i = \sigma\big(\beta\,(R^c_i - R^r_i)\big), \quad R = \log\frac{\pi(y)}{\bar\pi(y)}

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        ref_chosen_logps: The same of the chosen completions under the reference model :math:`\bar\pi`.
        ref_rejected_logps: The same of the rejected completions.
        chosen_logits: In place of `chosen_logps`: scores of the model, float `[batch chosen_seq vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0, scale of the reward: the smaller, the further the model may leave the reference.
        label_smoothing: :math:`\epsilon` in (0, 0.5), the probability that the labels give to the rejected completion.
            At 0 every pair would cost infinitely much.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats; 0 where :math:`q = 1 - \epsilon`. A batch in
        which nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's and Liger's `loss_type="exo_pair"` with the same `label_smoothing`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> resolve_loss("exo", beta=0.5, label_smoothing=0.1)(pair, ref)["loss"]  # 0.731 ln 0.812 + 0.269 ln 2.689
        tensor(0.1141)

    References:
        Ji et al., Towards Efficient Exact Optimization of Language Model Alignment, 2024, arXiv:2402.00856, equation
        16.
    """

    label_smoothing: float = Field(
        default=1e-3, gt=0, lt=0.5, description="Probability that the labels give to the rejected completion."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the divergence; see the class."""
        margin, epsilon = self.margin(pairs), self.label_smoothing
        log_q, log_rest = F.logsigmoid(margin), F.logsigmoid(-margin)
        return log_q.exp() * (log_q - math.log1p(-epsilon)) + log_rest.exp() * (log_rest - math.log(epsilon))
