"""Symmetric KL: forward and reverse KL together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe.training.losses.families.distillation import VocabularyDistillation

if TYPE_CHECKING:
    from tensafe.training.losses.ops.divergence import Divergence
    from tensafe.training.losses.traits import Traits


class SymmetricKL(VocabularyDistillation, name="symmetric_kl"):
    r"""Weighted mean of forward and reverse Kullback-Leibler divergence.

    .. math:: \ell_t = r\,\mathrm{KL}(P_t \| S_t) + (1 - r)\,\mathrm{KL}(S_t \| P_t), \quad
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
        ratio: Weight :math:`r` of the forward KL, in [0, 1]: 1 is `forward_kl`, 0 is `reverse_kl`.
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
        The loss in nats, 0-d float32 (float64 for float64 logits), >= 0, and 0 where the distributions are equal. A
        token that only one of them has masked (-inf) makes it infinite, with a ratio inside (0, 1). A batch in which
        nothing counts gives 0.0, attached to the graph; the gradient of a position that does not count is exactly zero,
        even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, such as a teacher with another vocabulary.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Torchtune's `SymmetricKLLoss` with `sym_kd_ratio` is larger by `ratio` times the teacher's entropy, since its
        forward term is a cross-entropy; its gradient is the same. Its labels are aligned already.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> round(resolve_loss("symmetric_kl")(outputs, {})["loss"].item(), 4)  # half of 0.1308 + 0.1438
        0.1373

    References:
        Kullback and Leibler, On Information and Sufficiency, 1951; their symmetric divergence is twice the one of ratio
        0.5.
    """

    _traits: ClassVar[Traits] = VocabularyDistillation._traits._replace(symmetric_in=(("logits", "teacher_logits"),))

    ratio: float = Field(default=0.5, ge=0, le=1, description="Weight of the forward KL; the rest is the reverse KL's.")

    @property
    def _divergence(self) -> Divergence:
        from tensafe.training.losses.ops.divergence import Divergence

        if self.ratio in {0.0, 1.0}:
            return Divergence("forward_kl" if self.ratio else "reverse_kl", temperature=self.temperature)
        return Divergence("symmetric_kl", self.ratio, self.temperature)
