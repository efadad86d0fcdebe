"""Self-play preference optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe.training.losses.families.preference import GainLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class SPPO(GainLoss, name="sppo"):
    r"""Regression of each reward on a win or a loss: self-play preference optimisation with hard labels.

    .. math:: \ell_i = \Big(R^c_i - \frac{1}{2\beta}\Big)^2 + \Big(R^r_i + \frac{1}{2\beta}\Big)^2, \quad
        R^c = \log\frac{\pi(y_c)}{\bar\pi(y_c)}, \quad R^r = \log\frac{\pi(y_r)}{\bar\pi(y_r)}

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
        beta: :math:`\beta` > 0; a win is worth :math:`1 / (2 \beta)` nats.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in squared nats; :math:`1 / (2 \beta^2)` at the
        reference. A batch in which nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's and Liger's `loss_type="sppo_hard"`. :math:`1 / \beta` is the paper's eta; its estimated
        probabilities of winning are 1 and 0 here.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> resolve_loss("sppo", beta=0.25)(pair, ref)["loss"]  # (1 - 2)^2 + (-1 + 2)^2
        tensor(2.)

    References:
        Wu et al., Self-Play Preference Optimization for Language Model Alignment, 2024, arXiv:2405.00675.
    """

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the loss of each pair; see the class."""
        (chosen, rejected), target = self.scores(pairs), 0.5 / self.beta
        return (chosen - target).square() + (rejected + target).square()
