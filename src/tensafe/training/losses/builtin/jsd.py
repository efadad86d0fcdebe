"""Generalised Jensen-Shannon divergence."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tensafe.training.losses.families.distillation import VocabularyDistillation

if TYPE_CHECKING:
    from typing import Self

    from tensafe.training.losses.ops.divergence import Divergence
    from tensafe.training.losses.traits import Traits

_NEAR = 0.05


class JSD(VocabularyDistillation, name="jsd"):
    r"""Generalised Jensen-Shannon divergence: how far student and teacher are from a mixture of both.

    .. math:: \ell_t = \beta\,\mathrm{KL}(P_t \| M_t) + (1 - \beta)\,\mathrm{KL}(S_t \| M_t), \quad
        M_t = \beta P_t + (1 - \beta) S_t, \quad
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
        beta: Share :math:`\beta` of the teacher in the mixture, in [0, 1]. At the ends it is another loss: 0 is
            `forward_kl`, 1 is `reverse_kl`. There is a jump: inside (0, 1) the divergence and its gradient tend to 0
            towards either end, so that a value within 0.05 of an end gives a warning.
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
        The loss in nats, 0-d float32 (float64 for float64 logits), >= 0 but for rounding, and 0 where the distributions
        are equal, but for rounding. Inside (0, 1) it is at most the entropy of a coin of bias :math:`\beta`, ln 2 for
        0.5 (times the square of the temperature with `scale_tau2`), and -inf logits are fine on either side. A batch in
        which nothing counts gives 0.0, attached to the graph; the gradient of a position that does not count is exactly
        zero, even where its logits are NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit, such as a teacher with another vocabulary.
        LossConfigError: A kwarg is unknown or out of range.

    Warns:
        UserWarning: `beta` is within 0.05 of 0 or 1, but not there.

    Note:
        TRL's `GKDTrainer.generalized_jsd_loss` and the soft term of Liger's `LigerFusedLinearJSDLoss`, ends included;
        their labels are aligned already. TRL's `batchmean` is `mean`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> round(resolve_loss("jsd")(outputs, {})["loss"].item(), 4)  # the mean of both KL to (0.375, 0.625)
        0.0338

    References:
        Agarwal et al., On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes (GKD), 2023,
        arXiv:2306.13649, equation 1.
    """

    _traits: ClassVar[Traits] = VocabularyDistillation._traits._replace(symmetric_in=(("logits", "teacher_logits"),))

    beta: float = Field(
        default=0.5, ge=0, le=1, description="Share of the teacher in the mixture; 0 is forward KL, 1 is reverse KL."
    )

    @model_validator(mode="after")
    def _warn_near_the_ends(self) -> Self:
        if 0 < min(self.beta, 1 - self.beta) < _NEAR:
            end, name = (0, "forward_kl") if self.beta < _NEAR else (1, "reverse_kl")
            message = (
                f"jsd: beta={self.beta} makes the loss and its gradient nearly 0; beta={end} itself is {name}, "
                "a jump away. Use that, or a beta in [0.05, 0.95]."
            )
            warnings.warn(message, UserWarning, stacklevel=3)
        return self

    @property
    def _divergence(self) -> Divergence:
        from tensafe.training.losses.ops.divergence import Divergence

        if self.beta in {0.0, 1.0}:
            return Divergence("reverse_kl" if self.beta else "forward_kl", temperature=self.temperature)
        return Divergence("jsd", self.beta, self.temperature)
