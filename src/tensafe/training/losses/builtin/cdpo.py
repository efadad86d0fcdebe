"""Conservative direct preference optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe.training.losses.families.pairs import smoothed_logistic
from tensafe.training.losses.families.preference import GainLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class CDPO(GainLoss, name="cdpo"):
    r"""Preference loss for labels of which a known share is wrong: it stops at a finite margin.

    .. math:: \ell_i = -(1 - \epsilon) \log\sigma(x_i) - \epsilon \log\sigma(-x_i), \quad x_i = \beta\,(R^c_i - R^r_i),
        \quad R = \log\frac{\pi(y)}{\bar\pi(y)}

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
        label_smoothing: :math:`\epsilon` in [0, 0.5), the share of pairs that are the wrong way round; 0 is `dpo`. The
            loss is least at :math:`x = \log((1 - \epsilon) / \epsilon)`.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats; log 2 at the reference. A batch in which
        nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to torchtune's `DPOLoss` and OpenRLHF's DPO with `label_smoothing`. TRL's `sigmoid` does not read
        `label_smoothing`; its `robust` is `robust_dpo` here.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> resolve_loss("cdpo", beta=0.5, label_smoothing=0.1)(pair, ref)["loss"]  # 0.9 * 0.3133 + 0.1 * 1.3133
        tensor(0.4133)

    References:
        Mitchell, A note on DPO with noisy preferences and relationship to IPO, 2023.
    """

    label_smoothing: float = Field(
        default=0.1, ge=0, lt=0.5, description="Share of the pairs whose labels are expected to be swapped."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the smoothed logistic loss; see the class."""
        return smoothed_logistic(self.margin(pairs), self.label_smoothing)
