"""What two calls have in common, and where they part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tensafe.training.losses.testing.trial import Run

__all__ = ["agree", "change_of", "shown"]


def change_of(before: Run, after: Run, *, rtol: float = 1e-7, atol: float = 1e-10) -> str | None:
    """Return what differs between two results, as in "the loss, from 1.5 to 1.7"; None if nothing does.

    Metrics are compared as numbers, whatever their types; NaN equals NaN.
    """
    for what, old, new in _pairs(before, after):
        if old is None or new is None:
            return f"{what}, which is there only {'after' if old is None else 'before'}"
        if not agree(old, new, rtol=rtol, atol=atol):
            return f"{what}, {_told(torch.as_tensor(old), torch.as_tensor(new))}"
    return None


def agree(one: Any, other: Any, *, rtol: float = 1e-7, atol: float = 1e-10) -> bool:
    """Whether two tensors or numbers agree; with both tolerances 0, bit for bit."""
    one, other = torch.as_tensor(one).detach(), torch.as_tensor(other).detach()
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        one, other = one.double(), other.double()
    if one.dtype is torch.bool:
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True)


def shown(number: Tensor | float) -> str:
    """Return a number, as short as it can be told from its like."""
    return f"{float(number):.9g}"


def _pairs(before: Run, after: Run) -> Iterator[tuple[str, Any, Any]]:
    yield "the loss", before.loss, after.loss
    old, new = before.result.get("metrics", {}), after.result.get("metrics", {})
    for name in {**old, **new}:
        yield f"the metric {name!r}", old.get(name), new.get(name)
    for key, gradient in before.gradients.items():
        yield f"the gradient of {key!r}", gradient, after.gradients[key]


def _told(old: Tensor, new: Tensor) -> str:
    if old.shape != new.shape:
        return f"of shape {list(old.shape)} before and {list(new.shape)} after"
    if old.ndim == 0:
        return f"from {shown(old)} to {shown(new)}"
    furthest = (old.double() - new.double()).abs().nan_to_num(torch.inf).argmax()
    return f"in one element from {shown(old.flatten()[furthest])} to {shown(new.flatten()[furthest])}"
