"""Direct preference optimisation with a likelihood term."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe._lazy import F
from tensafe.training.losses.families.preference_lengths import ReferencedAnchoredLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class RPO(ReferencedAnchoredLoss, name="rpo"):
    r"""Preference loss that also keeps the chosen completion likely: `dpo` plus its negative log-likelihood.

    .. math:: \ell_i = -\log\sigma\big(\beta\,(R^c_i - R^r_i)\big) + \alpha\,\mathrm{nll}_i, \quad
        \mathrm{nll}_i = -\frac{\log\pi(y_c)}{|y_c|}, \quad R = \log\frac{\pi(y)}{\bar\pi(y)}

    Args:
        chosen_logps: Log-probability :math:`\log\pi` of each chosen completion, summed over its tokens, float
            `[batch]`, in nats, <= 0. Its sign is not checked: that would cost a synchronisation.
        rejected_logps: The same of each rejected completion.
        ref_chosen_logps: The same of the chosen completions under the reference model :math:`\bar\pi`.
        ref_rejected_logps: The same of the rejected completions.
        chosen_nll: Negative log-likelihood of each chosen completion per token, float `[batch]`, in nats, >= 0. It may
            be left out: it is then made of `chosen_logps` and `chosen_lengths`, or of the logits.
        chosen_lengths: Tokens of each chosen completion, integers `[batch]`; a pair with an empty one does not count.
        chosen_logits: In place of `chosen_logps` and `chosen_lengths`: scores of the model, float `[batch chosen_seq
            vocab]`.
        chosen_labels: Then the ids of the tokens, integers `[batch chosen_seq]`, and `ignore_index` at the prompt and
            at padding; position t is scored against label t + 1. A pair with an empty completion does not count.
        rejected_logits: In place of `rejected_logps`: float `[batch rejected_seq vocab]`.
        rejected_labels: Integers `[batch rejected_seq]`, likewise.
        beta: :math:`\beta` > 0, scale of the reward: the smaller, the further the model may leave the reference.
        alpha: :math:`\alpha` >= 0, weight of the likelihood of the chosen completion; 0 is `dpo`, and needs none.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, beta times the gain of each over the
            reference, `reward_margin`, their difference, and `reward_accuracy`, the share of pairs with a margin above
            0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in nats. A batch in which nothing counts gives 0.0,
        attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        TRL's `loss_type=["sigmoid", "sft"]` with `loss_weights=[1.0, alpha]` averages the likelihood over all tokens of
        the batch; here each pair has its own mean, as in the paper, so the two agree where the chosen completions are
        equally long.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> batch = {"chosen_lengths": torch.tensor([5])}
        >>> resolve_loss("rpo", beta=0.5)(pair, {**ref, **batch})["loss"]  # 0.3133 + 10 / 5
        tensor(2.3133)

    References:
        Pang et al., Iterative Reasoning Preference Optimization, 2024, arXiv:2404.19733, equation 1.
    """

    alpha: float = Field(default=1.0, ge=0, description="Weight of the likelihood of the chosen completion.")

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the logistic loss plus the likelihood term; see the class."""
        logistic = -F.logsigmoid(self.margin(pairs))
        return logistic + self.alpha * pairs.chosen_nll if self.alpha else logistic
