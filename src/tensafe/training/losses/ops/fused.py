"""Operations that make their own gradients, and the two ways in which autograd may ask for them.

Where what each result will be multiplied by is known beforehand, the gradients are made along with the results (`dot`);
otherwise they are made from the inputs in the backward pass (`results`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .lean import is_plain, scale_

__all__ = ["Fused", "apply", "dot", "results", "weighted_sum"]

_C: Any = torch._C


class Fused(ABC):
    """One call of an operation, with its constants; the tensors that may want a gradient are its inputs."""

    @abstractmethod
    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Return the results, `[n]` each, and the gradients of the inputs.

        Args:
            inputs: The tensors; an optional one may be None.
            upstream: What comes down to each result, `[n]`; None where no gradient is wanted. A row to which nothing
                comes down gets a gradient of exactly zero.
            wanted: Whether the gradient of each input is wanted.
        """

    @abstractmethod
    def plain(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Return the results by torch's own operations, which it can trace, transform and differentiate twice."""


def results(fused: Fused, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Return the results; their gradients are made in the backward pass."""
    made: tuple[Tensor, ...] = apply(_Results, fused, *inputs)
    return made


def dot(fused: Fused, coefficients: Tensor, *inputs: Tensor | None) -> Tensor:
    """Return the sum of coefficients times the only result; the gradients are made now, if any is wanted."""
    if not torch.is_grad_enabled():  # the function itself would see only that a parameter requires a gradient
        inputs = tuple(None if tensor is None else tensor.detach() for tensor in inputs)
    total: Tensor = apply(_Dot, fused, coefficients, *inputs)
    return total


def apply(function: Any, *arguments: Any) -> Any:
    """Call a `torch.autograd.Function`, whose `apply` is untyped."""
    return function.apply(*arguments)


def weighted_sum(values: Tensor, coefficients: Tensor) -> Tensor:
    """Return the sum of coefficients times values; a coefficient of 0 drops a value, whatever it is."""
    return (torch.where(coefficients != 0, values, 0.0) * coefficients).sum()


class _Results(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Fused, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.fused = fused
        ctx.save_for_backward(*inputs)
        return fused.run(inputs, None, [False] * len(inputs))[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, *_gradients(ctx, upstream, ctx.needs_input_grad[1:])


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Fused, coefficients: Tensor, *inputs: Tensor | None) -> Tensor:
        ctx.fused, ctx.coefficients, ctx.gradients = fused, coefficients, None
        ctx.save_for_backward(*inputs)
        wanted = ctx.needs_input_grad[2:]
        if any(wanted):
            (values,), ctx.gradients = fused.run(inputs, (coefficients,), wanted)
        else:
            (values,), _ = fused.run(inputs, None, wanted)
        return weighted_sum(values, coefficients)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        if ctx.gradients is None or torch.is_grad_enabled() or _are_many(upstream):
            gradients = _gradients(ctx, (upstream[0] * ctx.coefficients,), ctx.needs_input_grad[2:])
        else:
            # were they kept, they would be copied on their way to .grad; a second backward pass makes them again
            made, ctx.gradients = ctx.gradients, None
            gradients = [None if gradient is None else scale_(gradient, upstream[0]) for gradient in made]
        return None, None, *gradients


def _are_many(upstream: Sequence[Tensor]) -> bool:
    """Return whether they stand for many, by torch.func's vmap or by the older one of `is_grads_batched`."""
    return is_plain(*upstream) or any(_C._functorch.is_legacy_batchedtensor(each) for each in upstream)


def _gradients(ctx: Any, upstream: Sequence[Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """Make the gradients from the inputs.

    By the plain formula where they will be differentiated themselves (`create_graph`), or where many of them are asked
    for at once (`is_grads_batched`).
    """
    inputs: Sequence[Tensor | None] = ctx.saved_tensors
    differentiable = torch.is_grad_enabled()
    if not differentiable:
        if not _are_many(upstream):
            gradients: Sequence[Tensor | None] = ctx.fused.run(inputs, upstream, wanted)[1]
            return gradients
        inputs = [None if tensor is None else tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    sources = [tensor for tensor, is_wanted in zip(inputs, wanted, strict=True) if is_wanted and tensor is not None]
    with torch.enable_grad():
        values = ctx.fused.plain(*inputs)
        made = iter(torch.autograd.grad(values, sources, upstream, create_graph=differentiable))
    return [next(made) if is_wanted else None for is_wanted in wanted]
