"""Writing a gradient over the logits that it belongs to, and refusing where somebody needs the logits again."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from tensafe.training.losses.errors import LossInputError, make_error

from .fused import apply, weighted_sum
from .lean import clear_rows, compute_dtype, scale_

__all__ = ["check_untouched", "overwritten"]

_HINT = "Leave overwrite_logits off."
_DEPTH = 4
"""How many steps of the graph are looked at: views and reshapes may stand between the logits and what made them."""

_overwritten: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""Storage of logits that hold a gradient now, and the version that they had then."""


def check_untouched(*inputs: Float[Tensor, "n vocab"]) -> None:
    """Refuse logits that an earlier loss has written its gradient over.

    Raises:
        LossInputError: They hold a gradient.
    """
    for logits in inputs if _overwritten else ():
        version = _overwritten.get(logits.untyped_storage())
        if version is not None and version == logits._version:  # in inference mode there are no versions
            _refuse("an earlier loss has overwritten the logits with their gradient; they are no logits any more.")


def overwritten(
    logits: Float[Tensor, "n vocab"],
    write_gradient: Callable[[Tensor, Tensor, Tensor], Tensor],
    coefficients: Float[Tensor, " n"] | None,
) -> Tensor:
    """Return the values of rows, or the sum of coefficients times them, and write their gradient over the logits.

    Args:
        logits: What is overwritten.
        write_gradient: Called with where to write, the logits, and what comes down to each row; returns the values.
        coefficients: Constants; None for the values.

    Raises:
        LossInputError: Something needs the logits again.
    """
    _check_overwritable(logits)
    result: Tensor = apply(_Overwriting, logits, write_gradient, coefficients)
    return result


class _Overwriting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, write_gradient: Any, coefficients: Tensor | None) -> Tensor:
        ctx.gradient, ctx.is_sum = logits.detach(), coefficients is not None
        dtype = compute_dtype(logits.dtype)
        ones = torch.ones(logits.shape[0], dtype=dtype, device=logits.device)
        values: Tensor = write_gradient(ctx.gradient, ctx.gradient, ones if coefficients is None else coefficients)
        _mark(logits)
        return values if coefficients is None else weighted_sum(values, coefficients)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            _refuse("a second backward pass needs the logits, which the first one's gradient has overwritten.")
        if torch.is_grad_enabled():
            _refuse("a gradient that is differentiated once more (create_graph) needs the logits.")
        if _overwritten.get(gradient.untyped_storage()) != gradient._version:
            _refuse("something else has been written over the gradient that stood in place of the logits.")
        if ctx.is_sum:
            scale_(gradient, upstream[0])
        else:
            gradient.mul_(upstream[0].unsqueeze(1))
            clear_rows(gradient, upstream[0] == 0)
        _mark(gradient)
        return gradient, None, None


def _mark(gradient: Tensor) -> None:
    _overwritten[gradient.untyped_storage()] = gradient._version


def _check_overwritable(logits: Tensor) -> None:
    """Refuse to overwrite a leaf, or what the graph keeps for its own backward pass."""
    if any(stride == 0 and size > 1 for size, stride in zip(logits.shape, logits.stride(), strict=True)):
        _refuse("the logits are expanded: their rows share memory.")
    here = logits.untyped_storage()
    node: Any = get_gradient_edge(logits).node
    for _ in range(_DEPTH):
        if node is None:
            return
        leaf: Tensor | None = getattr(node, "variable", None)
        if leaf is not None and leaf.untyped_storage() is here:
            _refuse("the logits are a leaf of the graph: overwriting them would change a parameter or an input.")
        if any(saved.untyped_storage() is here for saved in _saved_by(node)):
            _refuse(f"the backward pass of {node.name().removesuffix('0')} needs the logits again.")
        node = node.next_functions[0][0] if node.next_functions else None


def _refuse(message: str) -> NoReturn:
    raise make_error(LossInputError, message, code="logits-overwritten", loc=("overwrite_logits",), hint=_HINT)


def _saved_by(node: Any) -> list[Tensor]:
    if hasattr(node, "saved_tensors"):  # a torch.autograd.Function
        saved = node.saved_tensors
    else:
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    return [tensor for tensor in saved if isinstance(tensor, torch.Tensor)]
