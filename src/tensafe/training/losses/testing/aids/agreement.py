"""Whether two runs of a loss gave the same: the whole result, and the gradients.

Up to rounding in float64: the same sum, of tensors that lie elsewhere in memory, may be added in another order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tensafe.training.losses.testing.outcome import fail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tensafe.training.losses.testing.trial import Run, Trial

__all__ = ["require_agreement", "require_same_result"]


def require_agreement(
    found: Run, expected: Run, where: str, trial: Trial, *, rtol: float = 1e-9, atol: float = 1e-12
) -> None:
    """Fail unless two runs agree in every part of their results and in every gradient.

    Args:
        found: What was run in an unusual way.
        expected: What was run plainly.
        where: The unusual way, such as `under torch.compile`.
        trial: The call, to be shown.
        rtol: How far the numbers may be apart, relative to their size.
        atol: How far they may be apart at least.
    """
    require_same_result(found.result, expected.result, where, trial, rtol=rtol, atol=atol)
    for key, gradient in found.gradients.items():
        _require_close(f"the gradient of {key}", gradient, expected.gradients[key], where, trial, rtol, atol)


def require_same_result(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    where: str,
    trial: Trial,
    *,
    rtol: float = 1e-9,
    atol: float = 1e-12,
) -> None:
    """Fail unless two results agree: the same keys, loss, metrics and auxiliary tensors."""
    if list(found) != list(expected):
        fail(f"{where} its result has the keys {_names(found)}, else {_names(expected)}", trial=trial)
    _require_close("the loss", found["loss"], expected["loss"], where, trial, rtol, atol)
    for part in ("metrics", "auxiliary"):
        new, old = found.get(part, {}), expected.get(part, {})
        if list(new) != list(old):
            fail(f"{where} {part} has the keys {_names(new)}, else {_names(old)}", trial=trial)
        for name, value in new.items():
            _require_close(f"{part} {name}", value, old[name], where, trial, rtol, atol)


def _require_close(what: str, found: Any, expected: Any, where: str, trial: Trial, rtol: float, atol: float) -> None:
    if isinstance(found, Tensor) != isinstance(expected, Tensor):
        fail(f"{where} {what} is a {type(found).__name__}, else a {type(expected).__name__}", trial=trial)
    if not isinstance(found, Tensor | int | float):  # whatever else an auxiliary holds
        return
    try:
        torch.testing.assert_close(
            found, expected, rtol=rtol, atol=atol, equal_nan=True, check_device=isinstance(found, Tensor)
        )
    except AssertionError as error:
        fail(f"{where} {what} is not what it is else: {' '.join(str(error).split())}", trial=trial)


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(map(str, mapping)) or "(none)"
