"""Losses that do not look at what they are given, or say too little about it, or too much."""

from typing import Any

import torch
from torch import Tensor

from tensafe.training.losses import LossInputError, LossReturn
from tensafe.training.losses.testing import LossInfo
from zoo.healthy import careful_ce, reduced, taken, told
from zoo.mutant import Mutant


def bare_key_error(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which looks the labels up and hopes for the best."""
    return careful_ce(outputs, {**batch, "labels": batch["labels"]})


def only_absent(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which looks whether the key is there and not what it holds."""
    if "labels" not in batch:
        raise LossInputError(f"'labels' must be in batch; it has {', '.join(batch) or 'nothing'}.")
    rows = len(batch["labels"])
    return {**careful_ce(outputs, batch), "metrics": {"rows": rows}}


def masked_if_there(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels` where `mask` is true; a mask that is None masks everything."""
    labels = taken("labels", "int[batch seq]", "batch", batch)
    if "mask" in batch:
        mask = batch["mask"]
        if mask is None:
            mask = torch.zeros_like(labels, dtype=torch.bool)
        elif not isinstance(mask, Tensor) or mask.dtype is not torch.bool or mask.shape != labels.shape:
            got = told(mask) if isinstance(mask, Tensor) else type(mask).__name__
            raise LossInputError(f"'mask' must be bool, shaped like 'labels' {told(labels)}; got {got}.")
        elif mask.device != labels.device:
            raise LossInputError(f"'mask' is on {mask.device}, but 'labels' is on {labels.device}.")
        batch = {**batch, "labels": labels.masked_fill(~mask, -100)}
    return careful_ce(outputs, batch)


def printing_the_batch(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which shows what it has got in full."""
    for key, side in (("logits", outputs), ("labels", batch)):
        if side.get(key) is None:
            raise LossInputError(f"{key!r} is missing; got outputs {dict(outputs)} and batch {dict(batch)}.")
    return careful_ce(outputs, batch)


def curt_about_shapes(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which says that something is wrong, and not what."""
    logits, labels = outputs.get("logits"), batch.get("labels")
    tensors = isinstance(logits, Tensor) and isinstance(labels, Tensor)
    if tensors and logits.shape[:-1] != labels.shape:
        raise LossInputError("the shapes do not fit.")
    return careful_ce(outputs, batch)


def squared_error(outputs: Any, batch: Any) -> LossReturn:
    """Squared error of `predictions` and `targets`; compares the shapes only of those that have as many axes."""
    predictions = taken("predictions", "float[batch]", "outputs", outputs)
    targets = taken("targets", "float[batch]", "batch", batch)
    for key, tensor in (("predictions", predictions), ("targets", targets)):
        if not tensor.is_floating_point():
            raise LossInputError(f"{key!r} must be float[batch]; got {told(tensor)}.")
    if predictions.ndim == targets.ndim and predictions.shape != targets.shape:
        raise LossInputError(
            f"'predictions' and 'targets' must have one shape; got {told(predictions)} and {told(targets)}."
        )
    if predictions.device != targets.device:
        raise LossInputError(f"'predictions' is on {predictions.device}, but 'targets' is on {targets.device}.")
    wide = torch.promote_types(torch.promote_types(predictions.dtype, targets.dtype), torch.float32)
    values = (predictions.to(wide) - targets.to(wide)).square()
    return {"loss": reduced(values, torch.ones_like(values, dtype=torch.bool))}


def converted_labels(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which makes ids of whatever numbers there are."""
    labels = taken("labels", "int[batch seq]", "batch", batch)
    return careful_ce(outputs, {**batch, "labels": labels.long()})


def moved_labels(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, which moves the labels to where the logits are."""
    logits = taken("logits", "float[batch seq vocab]", "outputs", outputs)
    labels = taken("labels", "int[batch seq]", "batch", batch)
    return careful_ce(outputs, {**batch, "labels": labels.to(logits.device)})


def clamped_labels(outputs: Any, batch: Any) -> LossReturn:
    """Loss of `logits` and `labels`, to which a label beyond the vocabulary is its last."""
    logits = taken("logits", "float[batch seq vocab]", "outputs", outputs)
    labels = taken("labels", "int[batch seq]", "batch", batch)
    if logits.ndim == 3 and logits.shape[-1] and not labels.is_floating_point() and not labels.is_complex():
        labels = labels.clamp(max=logits.shape[-1] - 1) if labels.dtype is not torch.bool else labels
    return careful_ce(outputs, {**batch, "labels": labels})


def _out_of_range() -> list[Any]:
    labels = torch.tensor([[0, 9]])
    return [({"logits": torch.zeros(1, 2, 7)}, {"labels": labels}, {}, Exception, "out of (range|bounds)")]


MUTANTS = [
    Mutant("bare_key_error", bare_key_error, frozenset({"check_missing_key_message"})),
    Mutant("only_absent", only_absent, frozenset({"check_none_value_message"})),
    Mutant("masked_if_there", masked_if_there, frozenset({"check_none_value_message"})),
    Mutant(
        "printing_the_batch",
        printing_the_batch,
        frozenset({"check_missing_key_message", "check_none_value_message"}),
    ),
    Mutant("curt_about_shapes", curt_about_shapes, frozenset({"check_shape_mismatch_message"})),
    Mutant("squared_error", squared_error, frozenset({"check_no_silent_broadcast"})),
    Mutant("converted_labels", converted_labels, frozenset({"check_dtype_errors"})),
    Mutant("moved_labels", moved_labels, frozenset({"check_device_mismatch_message"})),
    Mutant("clamped_labels", clamped_labels, frozenset({"check_error_inputs"}), LossInfo(error_inputs=_out_of_range)),
]
