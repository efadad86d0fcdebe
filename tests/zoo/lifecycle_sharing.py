"""Losses that keep something of a call where the next one, or another thread, finds it."""

from typing import Any, Literal

import torch
from torch import Tensor

from tensafe.training.losses import LossReturn
from zoo.healthy import careful_ce
from zoo.mutant import Mutant


class InAttributes:
    """Loss of `logits` and `labels`, handed from one method to the next by an attribute.

    Args:
        reduction: `sum` or `mean`, the default.
    """

    def __init__(self) -> None:
        self._how: Any = "mean"

    def __call__(self, outputs: Any, batch: Any, *, reduction: Literal["sum", "mean"] = "mean") -> LossReturn:
        """Set the reduction, and use it."""
        self._how = reduction
        values = careful_ce(outputs, batch, reduction="none")["loss"]
        return {"loss": self._reduced(values)}

    def _reduced(self, values: Tensor) -> Tensor:
        return values.sum() if self._how == "sum" else values.sum() / (values != 0).sum().clamp(min=1)


class Remembering:
    """Loss of `logits` and `labels`, which keeps the last ones for a plot."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, outputs: Any, batch: Any) -> LossReturn:
        """Keep the logits."""
        result = careful_ce(outputs, batch)
        self.last = outputs["logits"]
        return result


def with_parts(outputs: Any, batch: Any) -> LossReturn:
    """Return the terms of the loss of `logits` and `labels` in a list, where nobody detaches them."""
    result = careful_ce(outputs, batch)
    return {**result, "auxiliary": {"terms": [result["loss"]]}}


_latest: dict[str, Any] = {"loss": None}


def with_a_global(outputs: Any, batch: Any) -> LossReturn:
    """Keep the latest loss of `logits` and `labels` in a global, for a progress bar."""
    result = careful_ce(outputs, batch)
    _latest["loss"] = result["loss"]
    return result


def summed_from_zero(outputs: Any, batch: Any) -> LossReturn:
    """Add the rows of `logits` and `labels` to a zero of torch's default dtype."""
    values = careful_ce(outputs, batch, reduction="none")["loss"]
    total = torch.zeros((), device=values.device)
    total = total + values.sum()
    return {"loss": total / (values != 0).sum().clamp(min=1)}


def times_a_tensor(outputs: Any, batch: Any) -> LossReturn:
    """Multiply the loss of `logits` and `labels` by a tensor that is made on torch's default device."""
    return {"loss": torch.tensor(0.5) * careful_ce(outputs, batch)["loss"]}


def in_single(outputs: Any, batch: Any) -> LossReturn:
    """Set torch's default dtype, for the tensors that the loss of `logits` and `labels` makes."""
    torch.set_default_dtype(torch.float32)
    return careful_ce(outputs, batch)


RELEASED = frozenset({"check_graph_released"})
SURROUNDINGS = frozenset({"check_default_dtype_and_device_context"})

MUTANTS = [
    Mutant("in_attributes", InAttributes(), frozenset({"check_thread_safety"})),
    Mutant("remembering", Remembering(), RELEASED),
    Mutant("with_parts", with_parts, RELEASED | {"check_metrics_are_detached_scalars"}),
    Mutant("with_a_global", with_a_global, RELEASED),
    Mutant("summed_from_zero", summed_from_zero, SURROUNDINGS),
    Mutant("times_a_tensor", times_a_tensor, SURROUNDINGS),
    Mutant("in_single", in_single, SURROUNDINGS),
]
