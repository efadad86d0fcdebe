"""Direct preference optimisation per token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensafe._lazy import F
from tensafe.training.losses.families.preference_lengths import ReferencedAveragedLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class SigmoidNorm(ReferencedAveragedLoss, name="sigmoid_norm"):
    r"""Preference loss of the gain per token, so that a longer completion has no larger margin.

    .. math:: \ell_i = -\log\sigma\big(\beta\,(s^c_i - s^r_i)\big), \quad
        s^c = \frac{1}{|y_c|} \log\frac{\pi(y_c)}{\bar\pi(y_c)}, \quad
        s^r = \frac{1}{|y_r|} \log\frac{\pi(y_r)}{\bar\pi(y_r)}

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        ref_chosen_logps: The same of the chosen completions under the reference model :math:`\bar\pi`.
        ref_rejected_logps: The same of the rejected completions.
        chosen_lengths: Tokens of each chosen completion, integers `[batch]`; a pair with an empty one does not count.
        rejected_lengths: Tokens of each rejected completion, likewise.
        chosen_logits: In place of `chosen_logps` and `chosen_lengths`: scores of the model, float `[batch chosen_seq
            vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps` and `rejected_lengths`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0; larger than that of `dpo` by about the length of a completion, such as 5.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, :math:`\beta s`, `reward_margin`,
            their difference, and `reward_accuracy`, the share of pairs with a margin above 0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats; log 2 at the reference. A batch in which
        nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's `loss_type="sigmoid_norm"` and open-instruct's `dpo_norm`. TRL logs rewards that are not divided
        by the length.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> batch = {"chosen_lengths": torch.tensor([5]), "rejected_lengths": torch.tensor([4])}
        >>> resolve_loss("sigmoid_norm", beta=2.0)(pair, {**ref, **batch})["loss"]  # -log sigmoid(2 * (1 / 5 + 1 / 4))
        tensor(0.3412)

    References:
        Lambert et al., Tulu 3: Pushing Frontiers in Open Language Model Post-Training, 2024, arXiv:2411.15124.
    """

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the logistic loss of the margin; see the class."""
        return -F.logsigmoid(self.margin(pairs))

    def scores(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the gain over the reference model per token."""
        return pairs.chosen.ratio_per_token, pairs.rejected.ratio_per_token
