"""Total variation distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tensafe.training.losses.families.distillation import VocabularyDistillation

if TYPE_CHECKING:
    from tensafe.training.losses.traits import Traits


class TVD(VocabularyDistillation, name="tvd"):
    r"""Total variation distance: how much mass the student must move to be the teacher.

    .. math:: \ell_t = \tfrac12 \sum_v \big|P_t[v] - S_t[v]\big|, \quad
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
        The loss, 0-d float32 (float64 for float64 logits), without a unit, in [0, 1] (times the square of the
        temperature with `scale_tau2`): 0 where the distributions are equal, 1 where they share no token. -inf logits
        are fine on either side. A batch in which nothing counts gives 0.0, attached to the graph; the gradient of a
        position that does not count is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, such as a teacher with another vocabulary.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Bounded, so that no single token dominates; symmetric. Its gradient vanishes where the student puts all its mass
        on one token. Liger's `LigerTVDLoss` takes probabilities instead of logits.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> round(resolve_loss("tvd")(outputs, {})["loss"].item(), 4)  # (0.25 + 0.25) / 2
        0.25

    References:
        Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023, arXiv:2307.15190.
    """

    _kind: ClassVar[Literal["forward_kl", "reverse_kl", "tvd"]] = "tvd"
    _traits: ClassVar[Traits] = VocabularyDistillation._traits._replace(symmetric_in=(("logits", "teacher_logits"),))
