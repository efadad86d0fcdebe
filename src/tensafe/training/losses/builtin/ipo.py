"""Identity preference optimisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe.training.losses.families.preference_lengths import ReferencedAveragedLoss

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class IPO(ReferencedAveragedLoss, name="ipo"):
    r"""Regression of the margin on a constant, so that pairs that are right already are left alone.

    .. math:: \ell_i = \Big(s^c_i - s^r_i - \frac{1}{2\beta}\Big)^2, \quad
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
        beta: :math:`\beta` > 0, the paper's tau; the margin aimed at is :math:`1 / (2 \beta)`.
        length_normalise: Whether scores :math:`s` are per token; false takes them whole, :math:`|y| = 1`, and needs no
            lengths.
        ignore_index: Label of a position that does not count.
        shift: Whether labels are shifted; false says that they are aligned with the logits already.
        reference_free: Whether to do without the reference model; its log-probabilities are 0 then, and may not be
            given.
        reduction: See `ElementLoss`; `none` gives one value per pair.
        metrics: Whether the result carries `chosen_reward` and `rejected_reward`, :math:`\beta s`, `reward_margin`,
            their difference, and `reward_accuracy`, the share of pairs with a margin above 0.

    Returns:
        The loss, 0-d float32 (float64 for float64 inputs), >= 0, in squared nats; :math:`1 / (4 \beta^2)` at the
        reference. A batch in which nothing counts gives 0.0, attached to the graph.

    Raises:
        LossInputError: A tensor is missing, is given twice (as log-probabilities and as logits), is a reference though
            `reference_free`, or does not fit; on CPU, a label is outside [0, vocab).
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Equal to TRL's `loss_type="ipo"`, which averages per token (its authors report that the paper's did); with
        `length_normalise: false` to OpenRLHF's, which sums. The best `beta` of one form is far from that of the other.
        TRL logs rewards that are not divided by the length.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pair = {"chosen_logps": torch.tensor([-10.0]), "rejected_logps": torch.tensor([-12.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-11.0]), "ref_rejected_logps": torch.tensor([-11.0])}
        >>> batch = {"chosen_lengths": torch.tensor([5]), "rejected_lengths": torch.tensor([4])}
        >>> resolve_loss("ipo", beta=0.5)(pair, {**ref, **batch})["loss"]  # (1 / 5 + 1 / 4 - 1)^2
        tensor(0.3025)

    References:
        Azar et al., A General Theoretical Paradigm to Understand Learning from Human Preferences, 2023,
        arXiv:2310.12036, equation 17.
    """

    length_normalise: bool = Field(
        default=True, description="Divide each log-ratio by the tokens of its completion; false: take the sums."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the squared distance from the margin aimed at; see the class."""
        chosen, rejected = self.scores(pairs)
        return (chosen - rejected - 0.5 / self.beta).square()

    def scores(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the gain over the reference model, per token or as a whole."""
        if not self.length_normalise:
            return super().scores(pairs)
        return pairs.chosen.ratio_per_token, pairs.rejected.ratio_per_token
