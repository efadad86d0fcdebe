"""Losses that work on plain tensors alone, or only while gradients are recorded."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tensafe.training.losses import LossReturn
from zoo.healthy import careful_ce
from zoo.mutant import Mutant


def exact_type(outputs: Any, batch: Any) -> LossReturn:
    """Refuse whatever is not exactly a tensor, in `logits` and `labels`."""
    result = careful_ce(outputs, batch)
    if type(outputs["logits"]) is not Tensor:
        raise TypeError("logits must be a tensor")
    return result


def no_parameters(outputs: Any, batch: Any) -> LossReturn:
    """Take a parameter for a mistake: `logits` and `labels` come from a model."""
    result = careful_ce(outputs, batch)
    if isinstance(outputs["logits"], nn.Parameter):
        raise TypeError("logits must not be a parameter")
    return result


def in_one_place(outputs: Any, batch: Any) -> LossReturn:
    """Take only `logits` and `labels` that are in one place, though torch's operations do not mind."""
    result = careful_ce(outputs, batch)
    if isinstance(outputs["logits"], DTensor):
        raise TypeError("gather the logits first")
    return result


def always_recording(outputs: Any, batch: Any) -> LossReturn:
    """Record gradients of `logits` and `labels`, whatever the caller said."""
    with torch.enable_grad():
        return careful_ce(outputs, batch)


KINDS = frozenset({"check_tensor_subclass_and_parameter", "check_dtensor", "check_no_host_sync", "check_export"})

MUTANTS = [
    Mutant("exact_type", exact_type, KINDS),
    Mutant("no_parameters", no_parameters, frozenset({"check_tensor_subclass_and_parameter"})),
    Mutant("in_one_place", in_one_place, frozenset({"check_dtensor"})),
    Mutant("always_recording", always_recording, frozenset({"check_no_grad_and_inference_mode"})),
]
