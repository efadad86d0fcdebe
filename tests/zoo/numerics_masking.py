"""Losses in which what does not count has a say, and that fall over where nothing does."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses import Elements, LossReturn
from zoo.alike import Mode, Side, Smoothing, told_alike
from zoo.healthy import CarefulCE, careful_ce, checked, reduced, token_losses
from zoo.mutant import Mutant


def _unmasked(logits: Tensor, labels: Tensor, ignore_index: int, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the loss of every position, those that do not count too, and which do."""
    targets = F.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    counts = targets != ignore_index
    logps = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    values = -logps.gather(-1, targets.masked_fill(~counts, 0).unsqueeze(-1)).squeeze(-1)
    if label_smoothing:
        values = (1 - label_smoothing) * values - label_smoothing * logps.mean(-1)
    return values, counts


@told_alike
def times_mask(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Multiply by the mask, and 0 times NaN is NaN."""
    logits, labels = checked(outputs, batch)
    values, counts = _unmasked(logits, labels, ignore_index, label_smoothing)
    loss = reduced(values * counts, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


class DroppedTooLate(CarefulCE):
    """What does not count is dropped after the formula: the value is right, the gradient of a NaN is not."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Compute all, drop some."""
        values, counts = _unmasked(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(torch.where(counts, values, 0.0), counts)


class ClampedLabels(CarefulCE):
    """Ignored labels are clamped to 0, and counted as that class."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Clamp, so that gather does not fail."""
        values, counts = token_losses(logits, labels.clamp(min=0), self.ignore_index, self.label_smoothing)
        return Elements(values, counts)


@told_alike
def nan_on_nothing(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Divide by what counts, which may be 0."""
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits, labels, ignore_index, label_smoothing)
    if reduction == "mean" and num_items_in_batch is None:
        return {"loss": values.sum() / counts.sum(), "metrics": {"num_tokens": counts.sum()}}
    loss = reduced(values, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


@told_alike
def detached_zero(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Return a constant 0 where nothing counts, which has no backward: the other ranks wait for ever."""
    kwargs: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    result = careful_ce(outputs, batch, **kwargs, num_items_in_batch=num_items_in_batch)
    if reduction == "mean" and not result["metrics"]["num_tokens"]:
        return {"loss": torch.zeros_like(result["loss"]), "metrics": result["metrics"]}
    return result


MUTANTS = [
    Mutant("x * mask", times_mask, frozenset({"check_masked_items_have_no_effect"})),
    Mutant("where after the formula", DroppedTooLate, frozenset({"check_masked_items_have_no_effect"})),
    Mutant(
        "clamped labels",
        ClampedLabels,
        frozenset(
            {
                "check_masked_items_have_no_effect",
                "check_nothing_to_learn",
                "check_padding_invariance",
                "check_reductions_consistent",
            }
        ),
    ),
    Mutant("0 / 0", nan_on_nothing, frozenset({"check_nothing_to_learn"})),
    Mutant("a detached 0", detached_zero, frozenset({"check_nothing_to_learn"})),
]
