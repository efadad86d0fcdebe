"""Losses of tokens: which positions count and how much, and cross-entropy from logits and from hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from tensafe._lazy import torch
from tensafe.training.losses.errors import LossInputError, make_error, missing_tensor, shorten
from tensafe.training.losses.families.ids import wrong_ids
from tensafe.training.losses.guards import is_list
from tensafe.training.losses.loss import TokenLoss
from tensafe.training.losses.packing import sequence_totals
from tensafe.training.losses.traits import Traits
from tensafe.training.losses.types import Elements

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tensafe.training.losses.ops.cross_entropy import Formula

__all__ = ["NonNegativeNumbers", "Targets", "TokenCrossEntropy", "TokenTargetLoss", "check_length"]


def _a_list(value: Any) -> Any:
    if not is_list(value):  # a tensor is a sequence of what looks like floats
        raise ValueError(f"expected a list of numbers, got {shorten(value)}")
    return value


NonNegativeNumbers = Annotated[
    tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False, min_length=1), BeforeValidator(_a_list)
]
"""Field type of a list or tuple of numbers >= 0, at least one."""


class Targets(NamedTuple):
    """What each position of the logits is scored against.

    Attributes:
        labels: Target ids; `ignore_index` where a position does not count, or counts with a weight of 0.
        weights: How much it counts: bool, or float where there are weights (or the logits are float64).
        segment_ids: Which sequence of a packed row it belongs to; None where each row is one.
    """

    labels: Tensor
    weights: Tensor
    segment_ids: Tensor | None


class TokenTargetLoss(TokenLoss):
    """Base of losses of tokens whose labels say what counts, and whose batch may say how much."""

    _family: ClassVar[str] = "token"
    _upcast: ClassVar[bool] = False
    _traits: ClassVar[Traits] = Traits(sample_independent=True)

    ignore_index: int = Field(default=-100, description="Label of a position that does not count.")
    shift: bool = Field(
        default=True, description="Score position t against label t + 1; false: labels are aligned with logits already."
    )

    def _targets(
        self,
        scored: Tensor,
        labels: Tensor | None,
        shift_labels: Tensor | None,
        token_weights: Tensor | None,
        sample_weights: Tensor | None,
        segment_ids: Tensor | None,
    ) -> Targets:
        """Return what the logits or hidden states that are scored, `[*rows _]`, are scored against."""
        used = self._aligned(scored, labels, shift_labels, segment_ids)
        counts = used != self.ignore_index
        if token_weights is None and sample_weights is None:
            # coefficients are made in the dtype of the weights, which bool leaves at float32
            return Targets(used, counts.to(torch.float64) if scored.dtype is torch.float64 else counts, segment_ids)
        shifts = self._shifts(scored, shift_labels)
        _check_sample_weights(sample_weights, counts, segment_ids)
        weights = _weights(scored, counts, token_weights, sample_weights, shifts=shifts)
        return Targets(torch.where(weights != 0, used, self.ignore_index), weights, segment_ids)

    def _weights_by_position(
        self,
        scored: Tensor,
        labels: Tensor | None,
        shift_labels: Tensor | None,
        mask: Tensor | None,
        token_weights: Tensor | None,
        sample_weights: Tensor | None,
        segment_ids: Tensor | None,
    ) -> Tensor:
        """Return the weights alone, for a loss that takes no targets from the labels; without labels all counts."""
        has_labels = labels is not None or shift_labels is not None
        counts = torch.ones(scored.shape[:-1], dtype=torch.bool, device=scored.device) if mask is None else mask
        if has_labels:
            counts = counts & (self._aligned(scored, labels, shift_labels, segment_ids) != self.ignore_index)
        shifts = has_labels and self._shifts(scored, shift_labels)
        _check_sample_weights(sample_weights, counts, segment_ids)
        return _weights(scored, counts, token_weights, sample_weights, shifts=shifts)

    def _aligned(
        self, scored: Tensor, labels: Tensor | None, shift_labels: Tensor | None, segment_ids: Tensor | None
    ) -> Tensor:
        """Return the label of each position of the logits or hidden states, `[*rows _]`, that are scored."""
        from tensafe.training.losses.ops.cross_entropy import shift_left

        if shift_labels is not None:
            return shift_labels
        if labels is None:
            raise missing_tensor("labels", "shift_labels")
        if not self._shifts(scored, shift_labels):
            return labels
        return shift_left(labels, self.ignore_index, segment_ids=segment_ids)

    def _shifts(self, scored: Tensor, shift_labels: Tensor | None) -> bool:
        return self.shift and shift_labels is None and scored.ndim > 2

    def _count(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the metric that every loss of tokens has."""
        return {"num_tokens": (weights if weights.dtype is torch.bool else weights != 0).sum()}

    def _wrong_labels(
        self,
        scored: Tensor,
        labels: Tensor | None,
        shift_labels: Tensor | None,
        segment_ids: Tensor | None,
        vocab: int,
    ) -> str | None:
        """Say which labels are out of range, for `explain`."""
        name = "labels" if shift_labels is None else "shift_labels"
        aligned = self._aligned(scored, labels, shift_labels, segment_ids)
        return wrong_ids(name, aligned, vocab, ignore_index=self.ignore_index)


class TokenCrossEntropy(TokenTargetLoss):
    """Base of cross-entropies of tokens against the label that follows them."""

    _traits: ClassVar[Traits] = Traits(sample_independent=True, non_negative=True)

    label_smoothing: float = Field(
        default=0.0, ge=0, le=1, description="Weight of the uniform distribution in the target."
    )
    smoothing_formula: Literal["pytorch", "megatron"] = Field(
        default="pytorch",
        description="What label smoothing is uniform over: pytorch, all classes; megatron, all but the label.",
    )
    class_weights: NonNegativeNumbers | None = Field(
        default=None, description="What a token counts for, by the class of its label: one number >= 0 per class."
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="Weight of the squared log-partition function, which keeps logits from drifting."
    )
    softcap: float | None = Field(
        default=None, gt=0, description="Bound of the logits: softcap * tanh(logits / softcap); none by default."
    )
    logit_scale: float = Field(default=1.0, gt=0, description="What the logits are multiplied by, before any softcap.")

    def _formula(self, vocab: int) -> Formula:
        from tensafe.training.losses.ops.cross_entropy import Formula

        smoothing = self.label_smoothing
        if smoothing and self.smoothing_formula == "megatron":  # one class has no others to be uniform over
            smoothing = smoothing * vocab / (vocab - 1) if vocab > 1 else 0.0
        return Formula(self.ignore_index, smoothing, self.z_loss, self.softcap, self.logit_scale)

    def _class_weight(self, scored: Tensor, vocab: int) -> Tensor | None:
        from tensafe.training.losses.ops.lean import compute_dtype

        if self.class_weights is None:
            return None
        check_length("class_weights", self.class_weights, "class", vocab)
        return torch.tensor(self.class_weights, dtype=compute_dtype(scored.dtype), device=scored.device)

    def _elements(
        self,
        targets: Targets,
        class_weight: Tensor | None,
        values: Callable[[], Tensor],
        dot: Callable[[Tensor], Tensor],
    ) -> Elements:
        """Return fused elements of values in which the class weights are."""
        from tensafe.training.losses.ops.sharding import as_peer

        labels, weights, segment_ids = targets
        metrics = self._count(weights) if self.metrics else None
        if class_weight is None or self.reduction not in {"mean", "sequence_mean"}:
            return Elements(values, weights, metrics, dot, segment_ids)
        # torch's mean divides by the class weights of the labels. What the values are to be multiplied by is the rest
        # of a coefficient: of one and the same number for all, or for each sequence, since 0 / 0 would lose it.
        divisors = weights * as_peer(class_weight, labels)[torch.where(weights != 0, labels, 0)]

        def total(of: Tensor) -> Tensor:
            return of.sum() if self.reduction == "mean" else sequence_totals(of, segment_ids)

        def dot_of_divisors(coefficients: Tensor) -> Tensor:
            divisor = total(divisors)
            return dot(weights * (total(coefficients) / torch.where(divisor == 0, 1.0, divisor)))

        return Elements(values, divisors, metrics, dot_of_divisors, segment_ids)

    def _of_logits(self, logits: Tensor, targets: Targets, *, overwrite_logits: bool = False) -> Elements:
        """Return the cross-entropy of each label."""
        from tensafe.training.losses.ops.cross_entropy import cross_entropy, cross_entropy_dot

        vocab = logits.shape[-1]
        labels, formula, class_weight = targets.labels, self._formula(vocab), self._class_weight(logits, vocab)
        return self._elements(
            targets,
            class_weight,
            lambda: cross_entropy(
                logits, labels, formula, class_weight=class_weight, overwrite_logits=overwrite_logits
            ),
            lambda c: cross_entropy_dot(
                logits, labels, c, formula, class_weight=class_weight, overwrite_logits=overwrite_logits
            ),
        )


def check_length(kwarg: str, numbers: tuple[float, ...], axis: str, size: int) -> None:
    """Refuse a list of numbers, one for each element of an axis, that is not as long.

    Raises:
        LossInputError: It is not.
    """
    if len(numbers) != size:
        raise make_error(
            LossInputError,
            f"{kwarg} must hold one number per {axis}, {size}; it holds {len(numbers)}.",
            code="invalid-length",
            loc=(kwarg,),
        )


def _weights(
    scored: Tensor, counts: Tensor, token_weights: Tensor | None, sample_weights: Tensor | None, *, shifts: bool
) -> Tensor:
    """Return how much each position counts, whatever the weights hold where it does not."""
    from tensafe.training.losses.ops.cross_entropy import shift_left
    from tensafe.training.losses.ops.lean import compute_dtype
    from tensafe.training.losses.ops.sharding import as_peer

    dtype = compute_dtype(scored.dtype)
    if token_weights is None and sample_weights is None and dtype is torch.float32:
        return counts
    weights = counts.to(dtype)
    if token_weights is not None:
        peers = as_peer(token_weights, counts)
        aligned = shift_left(peers, 0) if shifts else peers
        weights = torch.where(counts, aligned.to(dtype), 0.0)
    if sample_weights is not None:
        by_sample = as_peer(sample_weights, counts).to(dtype).reshape(-1, *[1] * (counts.ndim - 1))
        weights = torch.where(counts, weights * by_sample, 0.0)
    return weights


def _check_sample_weights(sample_weights: Tensor | None, counts: Tensor, segment_ids: Tensor | None) -> None:
    """Refuse weights of samples that are not one for each."""
    if sample_weights is None:
        return
    if segment_ids is not None:
        raise make_error(
            LossInputError,
            "'sample_weights' are one per row, and rows with 'segment_ids' hold several samples.",
            code="packed-rows",
            loc=("sample_weights",),
            hint="Pass token_weights, one per token.",
        )
    if sample_weights.shape != counts.shape[:1]:  # the axis of the batch is the first of any number of axes
        raise make_error(
            LossInputError,
            f"'sample_weights' must be float[batch] with batch={counts.shape[0] if counts.ndim else None} "
            f"(the first axis of the labels); got [{', '.join(map(str, sample_weights.shape))}].",
            code="shape-mismatch",
            loc=("sample_weights",),
            hint="Pass one weight per sequence.",
        )
