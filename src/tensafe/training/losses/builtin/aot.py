"""Distributional alignment of preferences by optimal transport, from pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe.training.losses.families.pairs import of_same_rank, smoothed_logistic
from tensafe.training.losses.families.preference import GainLoss
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from torch import Tensor

    from tensafe.training.losses.families.pairs import Pairs


class AOT(GainLoss, name="aot"):
    r"""Asks the distribution of the model's margins to dominate that of the reference: sorted, each above its fellow.

    .. math:: \ell_i = -(1 - \epsilon) \log\sigma(\beta \Delta_i) - \epsilon \log\sigma(-\beta \Delta_i), \quad
        \Delta_i = m_i - \bar m_{(\mathrm{rank}_i m)}, \quad m = \log\frac{\pi(y_c)}{\pi(y_r)}, \quad
        \bar m = \log\frac{\bar\pi(y_c)}{\bar\pi(y_r)}

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
        label_smoothing: :math:`\epsilon` in [0, 0.5), share of comparisons that are the wrong way round.
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
        The loss couples the pairs of a batch: cutting it into micro-batches changes it, and per-sample gradient
        clipping (DP-SGD) does not bound its sensitivity. One pair alone gives `cdpo`. Values of reduction `none` stand
        where the pair of :math:`m` does. Equal to TRL's `loss_type="aot"`, whose default `label_smoothing` is 0 too. To
        compare the samples of all ranks, call it with `tensafe.distributed.gather_rows` of outputs and batch.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> pairs = {"chosen_logps": torch.tensor([-1.0, -4.0]), "rejected_logps": torch.tensor([-3.0, -3.0])}
        >>> ref = {"ref_chosen_logps": torch.tensor([-4.0, -1.0]), "ref_rejected_logps": torch.tensor([-3.0, -3.0])}
        >>> resolve_loss("aot", beta=1.0, reduction="none")(pairs, ref)["loss"]  # margins 2, -1 and -1, 2: both equal
        tensor([0.6931, 0.6931])

    References:
        Melnyk et al., Distributional Preference Alignment of LLMs via Optimal Transport, 2024, arXiv:2406.05882.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=False,
        non_negative=True,
        shift_invariant=("chosen_logits", "rejected_logits"),
    )

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of the comparisons that are expected to be swapped."
    )

    def pair_loss(self, pairs: Pairs) -> Tensor:
        """Return the loss of each pair; see the class."""
        margin = pairs.chosen.logps - pairs.rejected.logps
        ref_margin = pairs.chosen.reference - pairs.rejected.reference
        lead = margin - of_same_rank(margin, ref_margin, pairs.counts)
        return smoothed_logistic(self.beta * lead, self.label_smoothing)
