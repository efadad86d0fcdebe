"""Losses that work in eager mode and nowhere else: what a compiler or a transform cannot follow."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tensafe.training.losses import Elements, LossReturn
from zoo.healthy import CarefulCE, careful_ce, token_losses
from zoo.mutant import Mutant

logger = logging.getLogger(__name__)


class ItemMetric(CarefulCE):
    """A metric as a number, which waits for the device."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Count with .item()."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        return Elements(values, counts, metrics={"num_tokens": counts.sum().item()})


class BranchOnValue(CarefulCE):
    """Nothing to learn is a case of its own, found by looking."""

    def compute(self, logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Elements:
        """Ask whether anything counts."""
        values, counts = token_losses(logits, labels, self.ignore_index, self.label_smoothing)
        if not counts.any():
            return Elements(values * 0, counts)
        return Elements(values, counts)


def indexed_by_mask(outputs: Any, batch: Any) -> LossReturn:
    """Mean over the tokens that count, of `logits` and `labels`, picked with a mask: the device knows how many."""
    values = careful_ce(outputs, batch, reduction="none")["loss"]
    counted = values[values != 0]
    return {"loss": counted.sum() / max(counted.shape[0], 1)}


def on_the_cpu(outputs: Any, batch: Any) -> LossReturn:
    """Weigh the positions of `logits` and `labels`, all alike for now, with a tensor that lives on the CPU."""
    values = careful_ce(outputs, batch, reduction="none")["loss"]
    weights = torch.ones(values.shape[1], dtype=values.dtype, device="cpu")
    return {"loss": (values * weights).sum() / (values != 0).sum().clamp(min=1)}


def logging_shapes(outputs: Any, batch: Any) -> LossReturn:
    """Tell each shape of `logits` and `labels`; somebody was debugging."""
    result = careful_ce(outputs, batch)
    logger.debug("logits %s", outputs["logits"].shape)
    return result


def token_by_token(outputs: Any, batch: Any) -> LossReturn:
    """Add the tokens of `logits` and `labels` in a loop, which a compiler unrolls for each length."""
    values = careful_ce(outputs, batch, reduction="none")["loss"]
    total = values.new_zeros(values.shape[0])
    for position in range(values.shape[1]):
        total = total + values[:, position]
    counts = values != 0
    return {"loss": total.sum() / counts.sum().clamp(min=1)}


@dataclass
class Shapes:
    """What `reporting` reports."""

    batch: int
    seq: int


def reporting(outputs: Any, batch: Any) -> LossReturn:
    """Return an object beside the loss of `logits` and `labels`."""
    result = careful_ce(outputs, batch)
    rows, length = batch["labels"].shape
    return {**result, "auxiliary": {"shapes": Shapes(rows, length)}}


def into_a_buffer(outputs: Any, batch: Any) -> LossReturn:
    """Write the values of `logits` and `labels` into a tensor that was made before."""
    values = careful_ce(outputs, batch, reduction="none")["loss"]
    buffer = torch.zeros(values.shape, dtype=values.dtype, device=values.device)
    buffer.copy_(values)
    counts = values != 0
    return {"loss": buffer.sum() / counts.sum().clamp(min=1)}


SYNC = frozenset({"check_no_host_sync", "check_vmap_and_func_grad"})

MUTANTS = [
    Mutant("item_metric", ItemMetric, SYNC | {"check_export"}),
    Mutant("branch_on_value", BranchOnValue, SYNC | {"check_compile_fullgraph", "check_export"}),
    Mutant("indexed_by_mask", indexed_by_mask, SYNC | {"check_dtensor"}),
    Mutant("on_the_cpu", on_the_cpu, frozenset({"check_no_host_sync"})),
    Mutant("logging_shapes", logging_shapes, frozenset({"check_compile_fullgraph"})),
    Mutant("token_by_token", token_by_token, frozenset({"check_dynamic_shapes"})),
    Mutant("reporting", reporting, frozenset({"check_export"})),
    Mutant("into_a_buffer", into_a_buffer, frozenset({"check_vmap_and_func_grad", "check_dtensor"})),
]
