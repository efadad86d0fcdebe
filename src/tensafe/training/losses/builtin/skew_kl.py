"""Skew KL: forward KL against a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tensafe.training.losses.families.distillation import VocabularyDistillation

if TYPE_CHECKING:
    from tensafe.training.losses.ops.divergence import Divergence


class SkewKL(VocabularyDistillation, name="skew_kl"):
    r"""Skew Kullback-Leibler divergence: forward KL to a mixture of the student and a little of the teacher.

    .. math:: \ell_t = \mathrm{KL}\big(P_t \,\|\, \alpha P_t + (1 - \alpha) S_t\big), \quad
        P_t = \mathrm{softmax}(t_t / \tau), \quad S_t = \mathrm{softmax}(s_t / \tau)

    Args:
        logits: The student's scores :math:`s`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in
            float32.
        teacher_logits: The teacher's scores :math:`t`, same shape and vocabulary. They get no gradient.
        labels: Integers `[batch seq]`, or `[N]`, that say what counts: not `ignore_index`. With `[batch seq vocab]`
            logits, position t counts when label t + 1 does, so that it is the predictions of counted tokens that are
            compared; the last position then does not count. None: every position counts.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        alpha: Share :math:`\alpha` of the teacher's own distribution in the mixture, in (0, 1): towards 0 it is
            `forward_kl`, towards 1 it vanishes.
        temperature: :math:`\tau` > 0. Above 1 both distributions are softer, so that unlikely tokens weigh more;
            towards 0 only the likeliest one is left of each.
        scale_tau2: Whether the values are multiplied by :math:`\tau^2`, which keeps the size of the gradient when the
            temperature changes. TRL, torchtune and Liger do not.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per position, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of positions that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits), >= 0 but for rounding, at most :math:`-\log \alpha`
        (times the square of the temperature with `scale_tau2`), and 0 where the distributions are equal, but for
        rounding. -inf logits are fine on either side. A batch in which nothing counts gives 0.0, attached to the graph;
        the gradient of a position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, such as a teacher with another vocabulary.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Bounded where the KL itself is not, and with a gradient that is smoother where the other side gives next to no
        mass. DistiLLM's own value of alpha is 0.1.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> round(resolve_loss("skew_kl")(outputs, {})["loss"].item(), 4)  # 0.25 ln(0.25/0.475) + 0.75 ln(0.75/0.525)
        0.107

    References:
        Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024, arXiv:2402.03898.
    """

    alpha: float = Field(default=0.1, gt=0, lt=1, description="Share of the teacher's own distribution in the mixture.")

    @property
    def _divergence(self) -> Divergence:
        from tensafe.training.losses.ops.divergence import Divergence

        return Divergence("skew_kl", self.alpha, self.temperature)
