"""Losses in the wrong dtype, or that lose digits on 16-bit inputs and under autocast."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses import Elements, LossReturn
from zoo.alike import Mode, Side, Smoothing, told_alike
from zoo.healthy import CarefulCE, careful_ce, checked, reduced, token_losses
from zoo.mutant import Mutant


@told_alike
def always_double(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Compute in float64, whatever comes in, and return that."""
    logits, labels = checked(outputs, batch)
    values, counts = token_losses(logits.double(), labels, ignore_index, label_smoothing)
    loss = reduced(values, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


@told_alike
def always_single(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Return float32 for float64 too."""
    kwargs: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    result = careful_ce(outputs, batch, **kwargs, num_items_in_batch=num_items_in_batch)
    return {"loss": result["loss"].float(), "metrics": result["metrics"]}


@told_alike
def in_the_dtype_of_the_logits(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Return the loss in the dtype of the logits, so that it moves in steps."""
    kwargs: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "reduction": reduction}
    result = careful_ce(outputs, batch, **kwargs, num_items_in_batch=num_items_in_batch)
    return {"loss": result["loss"].to(outputs["logits"].dtype), "metrics": result["metrics"]}


class SixteenBit(CarefulCE):
    """Log-probabilities in 16 bits, widened when it is too late."""

    _upcast: ClassVar[bool] = False

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Normalise first, then widen."""
        counts = F.pad(labels, (0, 1), value=self.ignore_index)[:, 1:] != self.ignore_index
        logps = F.log_softmax(logits.masked_fill(~counts.unsqueeze(-1), 0.0), -1)
        values, counts = token_losses(logps, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts)


class TruncatedValues(CarefulCE):
    """The values are kept in 16 bits, to save memory."""

    _upcast: ClassVar[bool] = False

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Round the values to the dtype of the logits."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values.to(logits.dtype).to(values.dtype), counts)


@told_alike
def picked_by_product(
    outputs: Side,
    batch: Side,
    *,
    ignore_index: int = -100,
    label_smoothing: Smoothing = 0.0,
    reduction: Mode = "mean",
    num_items_in_batch: Any = None,
) -> LossReturn:
    """Normalise by a matrix product, which autocast makes a 16-bit one."""
    logits, labels = checked(outputs, batch)
    wide = logits if logits.dtype is torch.float64 else logits.float()
    same = wide @ torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    clean = torch.where(wide.isfinite().all(-1, keepdim=True), same.to(wide.dtype), wide)
    values, counts = token_losses(clean, labels, ignore_index, label_smoothing)
    loss = reduced(values, counts, reduction, num_items_in_batch)
    return {"loss": loss, "metrics": {"num_tokens": counts.sum()}}


MUTANTS = [
    Mutant(
        "float64 always",
        always_double,
        frozenset({"check_dtype_policy", "check_default_dtype_and_device_context"}),
    ),
    Mutant("float32 always", always_single, frozenset({"check_dtype_policy", "check_gradcheck", "check_direction"})),
    Mutant(
        "the dtype of the logits",
        in_the_dtype_of_the_logits,
        frozenset({"check_dtype_policy", "check_low_precision_accuracy"}),
    ),
    Mutant("16-bit arithmetic", SixteenBit, frozenset({"check_low_precision_accuracy"})),
    Mutant("16-bit values", TruncatedValues, frozenset({"check_low_precision_accuracy"})),
    Mutant("a product under autocast", picked_by_product, frozenset({"check_autocast_invariant"})),
]
