"""Distillation: what losses of a student against a teacher's distribution over the next token share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.loss import TokenLoss
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor

    from tensafe.training.losses.ops.divergence import Divergence

__all__ = ["Distillation", "VocabularyDistillation"]


class Distillation(TokenLoss):
    """Base of losses that draw a student's distribution over the next token to a teacher's."""

    _family: ClassVar[str] = "distillation"
    _upcast: ClassVar[bool] = False
    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    temperature: float = Field(
        default=1.0, gt=0, description="What the scores of student and teacher are divided by; above 1 softens both."
    )
    scale_tau2: bool = Field(
        default=False,
        description="Multiply the divergence by temperature squared, so that its gradient keeps its size (Hinton).",
    )
    ignore_index: int = Field(default=-100, description="Label of a position that does not count.")
    shift: bool = Field(
        default=True, description="Position t counts when label t + 1 does; false: labels are aligned with the logits."
    )

    @property
    def _scale(self) -> float:
        """What the divergence is multiplied by."""
        return self.temperature**2 if self.scale_tau2 else 1.0

    def _aligned(
        self, logits: Tensor, labels: Tensor | None, shift_labels: Tensor | None, segment_ids: Tensor | None
    ) -> Tensor | None:
        """Return the label of each position of the logits, if there are any."""
        from tensafe.training.losses.ops.cross_entropy import shift_left

        if shift_labels is not None or labels is None:
            return shift_labels
        if not self.shift or logits.ndim <= 2:
            return labels
        return shift_left(labels, self.ignore_index, segment_ids=segment_ids)

    def _counts(
        self, logits: Tensor, labels: Tensor | None, shift_labels: Tensor | None, segment_ids: Tensor | None
    ) -> Tensor:
        """Return which positions count: without labels, all of them."""
        aligned = self._aligned(logits, labels, shift_labels, segment_ids)
        if aligned is None:
            return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        return aligned != self.ignore_index

    def _elements(
        self,
        logits: Tensor,
        counts: Tensor,
        segment_ids: Tensor | None,
        values: Callable[[], Tensor],
        dot: Callable[[Tensor], Tensor],
    ) -> Elements:
        """Return fused elements: coefficients are made in the dtype of the weights, which bool leaves at float32."""
        weights = counts.to(torch.float64) if logits.dtype is torch.float64 else counts
        metrics = {"num_tokens": counts.sum()} if self.metrics else None
        return Elements(values, weights, metrics, dot, segment_ids)


class VocabularyDistillation(Distillation):
    """Base of divergences from a teacher whose logits are known for the whole vocabulary."""

    _kind: ClassVar[Literal["forward_kl", "reverse_kl", "tvd"]]
    """Which divergence, where no kwarg has a say in it."""
    _traits: ClassVar[Traits] = Traits(
        sample_independent=True,
        non_negative=True,
        zero_where_equal=("logits", "teacher_logits"),
        shift_invariant=("logits", "teacher_logits"),
    )

    @property
    def _divergence(self) -> Divergence:
        from tensafe.training.losses.ops.divergence import Divergence

        return Divergence(self._kind, temperature=self.temperature)

    def compute(
        self,
        logits: Float[Tensor, "*rows vocab"],
        teacher_logits: Float[Tensor, "*rows vocab"],
        labels: Int[Tensor, "*rows"] | None = None,
        shift_labels: Int[Tensor, "*rows"] | None = None,
        segment_ids: Int[Tensor, "*rows"] | None = None,
    ) -> Elements:
        """Return the divergence at each position; see the class."""
        from tensafe.training.losses.ops.divergence import divergence, divergence_dot

        counts, teacher = self._counts(logits, labels, shift_labels, segment_ids), teacher_logits.detach()
        formula, scale = self._divergence, self._scale
        return self._elements(
            logits,
            counts,
            segment_ids,
            lambda: scale * divergence(logits, teacher, formula, counts=counts),
            lambda c: divergence_dot(logits, teacher, scale * c, formula),
        )
