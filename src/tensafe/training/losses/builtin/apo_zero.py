"""Anchored preference optimisation, for a model that is worse than its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe._lazy import torch
from tensafe.training.losses.families.preference import GainLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class APOZero(GainLoss, name="apo_zero"):
    r"""Raises the chosen completion and lowers the rejected one, each against the reference.

    .. math:: \ell_i = \big(1 - \sigma(\beta R^c_i)\big) + \sigma(\beta R^r_i), \quad
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
        beta: :math:`\beta` > 0, scale of the reward: the smaller, the further the model may leave the reference.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), in [0, 2]; 1 at the reference. A batch in which nothing
        counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        For data whose chosen completions are better than what the model writes; else see `apo_down`. Equal to TRL's and
        Liger's `loss_type="apo_zero"`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> resolve_loss("apo_zero", beta=0.5)(pair, ref)["loss"]  # 2 * sigmoid(-0.5)
        tensor(0.7551)

    References:
        D'Oosterlinck et al., Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification
        in Alignment, 2024, arXiv:2408.06266, equation 7.
    """

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the loss of each pair; see the class."""
        chosen, rejected = self.rewards(pairs)
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)
