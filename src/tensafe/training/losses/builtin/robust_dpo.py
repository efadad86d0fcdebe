"""Direct preference optimisation that corrects for swapped labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.preference import GainLoss
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class RobustDPO(GainLoss, name="robust_dpo"):
    r"""Preference loss whose expectation over randomly swapped labels is that of `dpo` on the true ones.

    .. math:: \ell_i = \frac{-(1 - \epsilon) \log\sigma(x_i) + \epsilon \log\sigma(-x_i)}{1 - 2\epsilon}, \quad
        x_i = \beta\,(R^c_i - R^r_i), \quad R = \log\frac{\pi(y)}{\bar\pi(y)}

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
        label_smoothing: :math:`\epsilon` in [0, 0.5), the share of pairs that are the wrong way round; 0 is `dpo`, and
            towards 0.5 the loss grows without bound.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), in nats; log 2 at the reference. It has no lower bound: it
        falls with slope :math:`\epsilon / (1 - 2 \epsilon)` as the margin grows. A batch in which nothing counts gives
        0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's and Liger's `loss_type="robust"`, whose default `label_smoothing` is 0.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> resolve_loss("robust_dpo", beta=0.5, label_smoothing=0.1)(pair, ref)["loss"]  # (0.2820 - 0.1313) / 0.8
        tensor(0.1883)

    References:
        Chowdhury, Kini and Natarajan, Provably Robust DPO: Aligning Language Models with Noisy Feedback, 2024,
        arXiv:2403.00409.
    """

    _traits: ClassVar[Traits] = Traits(sample_independent=True, shift_invariant=("chosen_logits", "rejected_logits"))

    label_smoothing: float = Field(
        default=0.1, ge=0, lt=0.5, description="Share of the pairs whose labels are expected to be swapped."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the unbiased logistic loss; see the class."""
        epsilon, margin = self.label_smoothing, self.margin(pairs)
        return (epsilon * F.logsigmoid(-margin) - (1 - epsilon) * F.logsigmoid(margin)) / (1 - 2 * epsilon)
