"""Cross-entropy of tokens: what it shares, from logits and from hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tensafe._lazy import torch
from tensafe.training.losses.errors import missing_tensor
from tensafe.training.losses.loss import TokenLoss
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tensafe.training.losses.ops.cross_entropy import Formula

__all__ = ["TokenCrossEntropy"]


class TokenCrossEntropy(TokenLoss):
    """Base of cross-entropies of tokens against the label that follows them."""

    _upcast: ClassVar[bool] = False

    ignore_index: int = Field(default=-100, description="Label of a position that does not count.")
    label_smoothing: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the uniform distribution in the target, torch's definition."
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="Weight of the squared log-partition function, which keeps logits from drifting."
    )
    softcap: float | None = Field(
        default=None, gt=0, description="Bound of the logits: softcap * tanh(logits / softcap); none by default."
    )
    logit_scale: float = Field(default=1.0, gt=0, description="What the logits are multiplied by, before any softcap.")
    shift: bool = Field(
        default=True, description="Score position t against label t + 1; false: labels are aligned with logits already."
    )

    @property
    def _formula(self) -> Formula:
        from tensafe.training.losses.ops.cross_entropy import Formula

        return Formula(self.ignore_index, self.label_smoothing, self.z_loss, self.softcap, self.logit_scale)

    def _aligned(self, scored: Tensor, labels: Tensor | None, shift_labels: Tensor | None) -> Tensor:
        """Return the label of each position of the logits or hidden states, `[*rows _]`, that are scored."""
        from tensafe.training.losses.ops.cross_entropy import shift_left

        if shift_labels is not None:
            return shift_labels
        if labels is None:
            raise missing_tensor("labels", "shift_labels")
        return shift_left(labels, self.ignore_index) if self.shift and scored.ndim > 2 else labels

    def _elements(
        self, scored: Tensor, labels: Tensor, values: Callable[[], Tensor], dot: Callable[[Tensor], Tensor]
    ) -> Elements:
        """Return fused elements: coefficients are made in the dtype of the weights, which bool leaves at float32."""
        counts = labels != self.ignore_index
        weights = counts.to(torch.float64) if scored.dtype is torch.float64 else counts
        return Elements(values, weights, {"num_tokens": counts.sum()} if self.metrics else None, dot)

    def _wrong_labels(
        self, scored: Tensor, labels: Tensor | None, shift_labels: Tensor | None, vocab: int
    ) -> str | None:
        """Say which labels are out of range, for `explain`."""
        name = "labels" if shift_labels is None else "shift_labels"
        used = self._aligned(scored, labels, shift_labels)
        wrong = (used != self.ignore_index) & ((used < 0) | (used >= vocab))
        count = int(wrong.sum())
        if not count:
            return None
        return (
            f"{name!r} must lie in [0, {vocab}) (vocab={vocab}) or be ignore_index={self.ignore_index}; "
            f"{count} of {used.numel()} do not."
        )
