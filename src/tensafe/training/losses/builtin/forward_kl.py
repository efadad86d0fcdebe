"""Forward KL: the student covers what the teacher does."""

from __future__ import annotations

from typing import ClassVar, Literal

from tensafe.training.losses.families.distillation import VocabularyDistillation


class ForwardKL(VocabularyDistillation, name="forward_kl"):
    r"""Forward Kullback-Leibler divergence: the student must give mass to all that the teacher gives mass to.

    .. math:: \ell_t = \mathrm{KL}(P_t \| S_t) = \sum_v P_t[v] \log \frac{P_t[v]}{S_t[v]}, \quad
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
        The loss in nats, 0-d float32 (float64 for float64 logits), >= 0, and 0 where the distributions are equal. A
        token that the teacher has masked (-inf) adds nothing; one that only the student has masked makes it infinite. A
        batch in which nothing counts gives 0.0, attached to the graph; the gradient of a position that does not count
        is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, such as a teacher with another vocabulary.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        torch.nn.functional.kl_div of the log-probabilities, summed over the vocabulary. TRL's
        `GKDTrainer.generalized_jsd_loss` with `beta=0`. Torchtune's `ForwardKLLoss` gives the cross-entropy instead: it
        is larger by the teacher's entropy, and so not 0 for equals; its gradient is the same. All of them take labels
        that are aligned already. kl_div's own `batchmean` divides by the size of the first axis, not by positions.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> round(resolve_loss("forward_kl")(outputs, {})["loss"].item(), 4)  # 0.25 ln(0.25/0.5) + 0.75 ln(0.75/0.5)
        0.1308

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531, section 2, where
        the gradient is multiplied by the square of the temperature: `scale_tau2`.
    """

    _kind: ClassVar[Literal["forward_kl", "reverse_kl", "tvd"]] = "forward_kl"
