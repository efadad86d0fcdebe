"""Reverse KL: the student seeks what the teacher finds likely."""

from __future__ import annotations

from typing import ClassVar, Literal

from tensafe.training.losses.families.distillation import VocabularyDistillation


class ReverseKL(VocabularyDistillation, name="reverse_kl"):
    r"""Reverse Kullback-Leibler divergence: the student must give no mass to what the teacher finds unlikely.

    .. math:: \ell_t = \mathrm{KL}(S_t \| P_t) = \sum_v S_t[v] \log \frac{S_t[v]}{P_t[v]}, \quad
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
        token that the student has masked (-inf) adds nothing; one that only the teacher has masked makes it infinite. A
        batch in which nothing counts gives 0.0, attached to the graph; the gradient of a position that does not count
        is exactly zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, such as a teacher with another vocabulary.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        Torchtune's `ReverseKLLoss`, and TRL's `GKDTrainer.generalized_jsd_loss` with `beta=1`; both take labels that
        are aligned already. Torchtune leaves out a token that either side has masked, where this is infinite if it is
        the teacher alone.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> round(resolve_loss("reverse_kl")(outputs, {})["loss"].item(), 4)  # 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75)
        0.1438

    References:
        Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2023, arXiv:2306.08543. The paper minimises
        it over whole sequences by policy gradient; this is the divergence at each token of a given sequence.
    """

    _kind: ClassVar[Literal["forward_kl", "reverse_kl", "tvd"]] = "reverse_kl"
