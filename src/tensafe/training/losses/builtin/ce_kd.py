"""Cross-entropy against labels and distillation from a teacher, mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe.training.losses.errors import missing_tensor
from tensafe.training.losses.families.distillation import Distillation
from tensafe.training.losses.families.ids import wrong_ids
from tensafe.training.losses.traits import Traits

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from tensafe.training.losses.types import Elements


class CEKD(Distillation, name="ce_kd"):
    r"""Cross-entropy against the labels and forward KL from a teacher, mixed: what distillation first was.

    .. math:: \ell_t = (1 - \alpha)\,(-\log \mathrm{softmax}(s_t)[y_t]) + \alpha\,\mathrm{KL}(P_t \| S_t), \quad
        P_t = \mathrm{softmax}(t_t / \tau), \quad S_t = \mathrm{softmax}(s_t / \tau)

    Args:
        logits: The student's scores :math:`s`, float `[batch seq vocab]`, or `[N vocab]`. 16-bit floats are computed in
            float32.
        teacher_logits: The teacher's scores :math:`t`, same shape and vocabulary. They get no gradient.
        labels: Target ids :math:`y`, integers `[batch seq]`, or `[N]`, in [0, vocab) or `ignore_index`. With
            `[batch seq vocab]` logits, position t is scored against label t + 1, and both terms are those of position
            t; the last position then does not count.
        shift_labels: Labels that are aligned with the logits already; used instead of `labels` and never shifted.
        segment_ids: Which sequence of a packed row each position belongs to, integers shaped like the labels: equal
            numbers are one sequence. Nothing is predicted across two, and reductions by sequence take each for one.
            `shift_labels` are used as they are.
        alpha: Weight :math:`\alpha` of the teacher, in [0, 1]: 0 is `token_ce`, 1 is `forward_kl`.
        temperature: :math:`\tau` > 0, of the divergence alone; the cross-entropy is that of the logits as they are.
        scale_tau2: Whether the divergence is multiplied by :math:`\tau^2`, as in the paper, so that the balance of both
            terms changes little when the temperature does.
        ignore_index: Label of a position that does not count.
        shift: Whether `labels` are shifted; false says that they are aligned with the logits already.
        reduction: See `TokenLoss`; `none` gives one value per position, 0 where it does not count.
        max_length: See `TokenLoss`.
        metrics: Whether the result carries `num_tokens`, the number of labels that count (0-d int64).

    Returns:
        The loss in nats, 0-d float32 (float64 for float64 logits), >= 0. A batch in which nothing counts gives 0.0,
        attached to the graph; the gradient of a position that does not count is exactly zero, even where its logits are
        NaN.

    Raises:
        LossInputError: A tensor is missing or does not fit; on CPU, a label is outside [0, vocab) and is not
            `ignore_index`.
        LossConfigError: A kwarg is unknown or out of range.

    Note:
        The logits are gone over once for each term, and each keeps a gradient of their size until `backward`. Liger's
        `weight_hard_loss` and `weight_soft_loss` are `1 - alpha` and `alpha`.

    Example:
        >>> import torch
        >>> from tensafe.training.losses import resolve_loss
        >>> outputs = {"logits": torch.tensor([[0.5, 0.5]]).log(), "teacher_logits": torch.tensor([[0.25, 0.75]]).log()}
        >>> loss_fn = resolve_loss("ce_kd", alpha=0.5)
        >>> round(loss_fn(outputs, {"labels": torch.tensor([1])})["loss"].item(), 4)  # half of ln 2 + 0.1308
        0.412

    References:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531, section 2; it
        multiplies the soft term by the square of the temperature, which here `scale_tau2` turns on.
    """

    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        shift_invariant=("logits", "teacher_logits"),
    )

    alpha: float = Field(
        default=0.5, ge=0, le=1, description="Weight of the teacher; the rest is the weight of the labels."
    )

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        teacher_logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return both terms at each position, mixed; see the class."""
        from tensafe.training.losses.ops.cross_entropy import Formula, cross_entropy, cross_entropy_dot
        from tensafe.training.losses.ops.divergence import Divergence, divergence, divergence_dot

        targets = self._aligned(logits, labels, shift_labels, segment_ids)
        if targets is None:
            raise missing_tensor("labels", "shift_labels")
        counts, teacher = targets != self.ignore_index, teacher_logits.detach()
        hard, soft = Formula(self.ignore_index), Divergence(temperature=self.temperature)
        of_labels, of_teacher = 1 - self.alpha, self.alpha * self._scale

        def values() -> Tensor:
            # a term of weight 0 may be infinite
            from_labels = of_labels * cross_entropy(logits, targets, hard) if of_labels else 0.0
            from_teacher = of_teacher * divergence(logits, teacher, soft, counts=counts) if of_teacher else 0.0
            total: Tensor = from_labels + from_teacher  # type: ignore[assignment]  # one of both is a tensor
            return total

        def dot(coefficients: Tensor) -> Tensor:
            from_labels = cross_entropy_dot(logits, targets, of_labels * coefficients, hard)
            return from_labels + divergence_dot(logits, teacher, of_teacher * coefficients, soft)

        return self._elements(logits, counts, segment_ids, values, dot)

    def explain(
        self,
        logits: Float[Tensor, "*rows vocab"],
        teacher_logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> str | None:
        """Say which labels are out of range."""
        targets = self._aligned(logits, labels, shift_labels, segment_ids)
        if targets is None:
            return None
        name = "labels" if shift_labels is None else "shift_labels"
        return wrong_ids(name, targets, logits.shape[-1], ignore_index=self.ignore_index)
