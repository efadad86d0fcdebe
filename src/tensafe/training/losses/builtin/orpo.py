"""Odds-ratio preference optimisation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tensafe._lazy import F, torch
from tensafe.training.losses.families.preference_lengths import AnchoredLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class ORPO(AnchoredLoss, name="orpo"):
    r"""Negative log-likelihood of the chosen completion, and the log odds ratio of the two: no reference model.

    .. math:: \ell_i = \mathrm{nll}_i - \beta \log\sigma\Big(\log\frac{p_c}{1 - p_c} - \log\frac{p_r}{1 - p_r}\Big),
        \quad \log p = \frac{\log\pi(y)}{|y|}, \quad \mathrm{nll}_i = -\log p_c

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        chosen_nll: Negative log-likelihood of each chosen completion per token, float `[batch]`, in nats, >= 0. It may
            be left out: it is then made of `chosen_logps` and `chosen_lengths`, or of the logits.
        chosen_lengths: Tokens of each chosen completion, integers `[batch]`; a pair with an empty one does not count.
        rejected_lengths: Tokens of each rejected completion, likewise.
        chosen_logits: In place of `chosen_logps` and `chosen_lengths`: scores of the model, float `[batch chosen_seq
            vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps` and `rejected_lengths`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0, weight of the odds ratio, the paper's lambda.
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
        Equal to TRL's `ORPOTrainer` and Liger's, but for the likelihood: they average it over all tokens of the batch,
        prompts included in TRL, and here each pair has its own mean. Give `chosen_nll` to have another. Probabilities
        above 1 - eps of the dtype count as that, so that the odds, and their gradient, stay finite.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> batch = {"chosen_lengths": torch.tensor([5]), "rejected_lengths": torch.tensor([4])}
        >>> resolve_loss("orpo", beta=1.0)(pair, batch)["loss"]  # 2 - log sigmoid(log(0.1565 / 0.0524))
        tensor(2.2888)

    References:
        Hong, Lee and Thorne, ORPO: Monolithic Preference Optimization without Reference Model, 2024, arXiv:2403.07691,
        equations 4 to 7.
    """

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the likelihood term plus the odds-ratio term; see the class."""
        chosen, rejected = self.scores(pairs)
        return pairs.chosen_nll - self.beta * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))

    def scores(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the log-probability per token."""
        return pairs.chosen.ratio_per_token, pairs.rejected.ratio_per_token


def _log_odds(log_prob: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of log p."""
    log_prob = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)
    # log(1 - p) cancels near p = 1 in one form, near p = 0 in the other; each form is given only what it is good for
    half = -math.log(2)
    near_one = torch.log(-torch.expm1(log_prob.clamp(min=half)))
    near_zero = torch.log1p(-torch.exp(log_prob.clamp(max=half)))
    return log_prob - torch.where(log_prob > half, near_one, near_zero)
