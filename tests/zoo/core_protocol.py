"""Losses that return too much or hold on to it, write to what they were given, or look at what is not theirs."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from tensafe.training.losses import LossReturn
from zoo.healthy import careful_ce, checked, token_losses
from zoo.mutant import Mutant


def with_function(outputs: Any, batch: Any, last: Callable[[Tensor], Tensor] = torch.neg) -> LossReturn:
    """Loss of `logits` and `labels`, by default of which nobody can read the settings.

    Args:
        outputs: `logits`, float `[batch seq vocab]`.
        batch: `labels`, integers `[batch seq]`.
        last: Turns the log-probabilities into the loss, default `torch.neg`; any function.
    """
    result = careful_ce(outputs, batch)
    return {**result, "loss": last(-result["loss"])}


def _timed(fn: Callable[..., LossReturn]) -> Callable[..., LossReturn]:
    @wraps(fn)
    def timed(outputs: Any, batch: Any) -> LossReturn:
        return fn(outputs, batch)

    return timed


def plain(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`."""
    return careful_ce(outputs, batch)


goes_by_another_name = _timed(plain)


def one_per_row(outputs: Any, batch: Any, by_row: bool = False) -> LossReturn:
    """Loss of `logits` and `labels`, which is no longer one number if it is asked for by row.

    Args:
        outputs: `logits`, float `[batch seq vocab]`.
        batch: `labels`, integers `[batch seq]`.
        by_row: Whether there is one for each row, default False; True or False.
    """
    if not by_row:
        return careful_ce(outputs, batch)
    values, counts = token_losses(*checked(outputs, batch))
    return {"loss": values.sum(1) / counts.sum(1).clamp(min=1)}


def without_return(outputs: Any, batch: Any) -> None:
    """Loss of `logits` and `labels`, which ends too early."""
    careful_ce(outputs, batch)


def with_accuracy(outputs: Any, batch: Any) -> dict[str, Any]:
    """Loss of `logits` and `labels`, with a metric beside the metrics."""
    result: Any = careful_ce(outputs, batch)
    return {**result, "accuracy": result["loss"].detach()}


def attached_metric(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, with itself for a metric."""
    result = careful_ce(outputs, batch)
    return {"loss": result["loss"], "metrics": {"nll": result["loss"]}}


def overwritten_labels(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, in which label 0 is the padding; so it is from then on for everybody."""
    _, labels = checked(outputs, batch)
    labels.masked_fill_(labels == 0, -100)
    return careful_ce(outputs, batch)


def popped_labels(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which takes the labels out of the batch."""
    result = careful_ce(outputs, batch)
    batch.pop("labels")
    return result


def counting_heads(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, a mean over as many heads as there are outputs."""
    result = careful_ce(outputs, batch)
    return {**result, "loss": result["loss"] / len(outputs)}


MUTANTS = [
    Mutant("with_function", with_function, frozenset({"check_resolves_to_callable"})),
    Mutant(
        "goes_by_another_name",
        goes_by_another_name,
        frozenset({"check_resolves_to_callable", "check_pickle_roundtrip"}),
    ),
    Mutant("one_per_row", one_per_row, frozenset({"check_returns_mapping_with_scalar_loss"})),
    Mutant("without_return", without_return, frozenset({"check_returns_mapping_with_scalar_loss"})),
    Mutant("with_accuracy", with_accuracy, frozenset({"check_returns_mapping_with_scalar_loss"})),
    Mutant("attached_metric", attached_metric, frozenset({"check_metrics_are_detached_scalars"})),
    Mutant("overwritten_labels", overwritten_labels, frozenset({"check_outputs_not_mutated"})),
    Mutant(
        "popped_labels",
        popped_labels,
        frozenset({"check_outputs_not_mutated", "check_accepts_mapping_attribute_and_dataclass_outputs"}),
    ),
    Mutant("counting_heads", counting_heads, frozenset({"check_extra_keys_ignored"})),
]
