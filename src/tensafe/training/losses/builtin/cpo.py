"""Contrastive preference optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe.training.losses.families.pairs import smoothed_logistic
from tensafe.training.losses.families.preference_lengths import AnchoredLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class CPO(AnchoredLoss, name="cpo"):
    r"""Preference loss without a reference model, plus the negative log-likelihood of the chosen completion.

    .. math:: \ell_i = -(1 - \epsilon) \log\sigma(x_i) - \epsilon \log\sigma(-x_i) + \alpha\,\mathrm{nll}_i, \quad
        x_i = \beta \log\frac{\pi(y_c)}{\pi(y_r)}, \quad \mathrm{nll}_i = -\frac{\log\pi(y_c)}{|y_c|}

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        chosen_nll: Negative log-likelihood of each chosen completion per token, float `[batch]`, in nats, >= 0. It may
            be left out: it is then made of `chosen_logps` and `chosen_lengths`, or of the logits.
        chosen_lengths: Tokens of each chosen completion, integers `[batch]`; a pair with an empty one does not count.
        rejected_lengths: Tokens of each rejected completion; not needed, and looked at only for empty ones.
        chosen_logits: In place of `chosen_logps` and `chosen_lengths`: scores of the model, float `[batch chosen_seq
            vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps` and `rejected_lengths`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0, scale of the reward.
        alpha: :math:`\alpha` >= 0, weight of the likelihood of the chosen completion; 0 needs none.
        label_smoothing: :math:`\epsilon` in [0, 0.5), the share of pairs that are the wrong way round.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the log-probability of
            each, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above 0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats. A batch in which nothing counts gives 0.0,
        attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), or does not fit; on
            CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's `CPOTrainer` with `loss_type="sigmoid"` and to Liger's, but for the likelihood: they average it
        over all tokens of the batch, prompts included in TRL, the paper sums it per completion, and here each pair has
        its own mean. Give `chosen_nll` to have another.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> batch = {"chosen_lengths": torch.tensor([5])}
        >>> resolve_loss("cpo", beta=0.5)(pair, batch)["loss"]  # -log sigmoid(0.5 * 2) + 10 / 5
        tensor(2.3133)

    References:
        Xu et al., Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
        Translation, 2024, arXiv:2401.08417. Label smoothing is not in the paper.
    """

    alpha: float = Field(default=1.0, ge=0, description="Weight of the likelihood of the chosen completion.")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of the pairs whose labels are expected to be swapped."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the logistic loss plus the likelihood term; see the class."""
        logistic = smoothed_logistic(self.margin(pairs), self.label_smoothing)
        return logistic + self.alpha * pairs.chosen_nll if self.alpha else logistic
