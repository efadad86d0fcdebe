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

from .lean import scale_

__all__ = ["Fused", "apply", "dot", "results", "weighted_sum"]


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
    def forward(ctx: Any, fused: Fused, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.fused = fused
        ctx.save_for_backward(*inputs)
        return fused.run(inputs, None, [False] * len(inputs))[0]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, *_gradients(ctx, upstream, ctx.needs_input_grad[1:])


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Fused, coefficients: Tensor, *inputs: Tensor) -> Tensor:
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
        if torch.is_grad_enabled() or ctx.gradients is None:  # differentiated once more, or a second time
            gradients = _gradients(ctx, (upstream[0] * ctx.coefficients,), ctx.needs_input_grad[2:])
        else:
            made, ctx.gradients = ctx.gradients, None  # were they kept, they would be copied on their way to .grad
            gradients = [None if gradient is None else scale_(gradient, upstream[0]) for gradient in made]
        return None, None, *gradients


def _gradients(ctx: Any, upstream: Sequence[Tensor], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """Make the gradients from the inputs; by the plain formula where they will be differentiated themselves."""
    inputs: tuple[Tensor, ...] = ctx.saved_tensors
    if not torch.is_grad_enabled():
        gradients: Sequence[Tensor | None] = ctx.fused.run(inputs, upstream, wanted)[1]
        return gradients
    sources = [tensor for tensor, is_wanted in zip(inputs, wanted, strict=True) if is_wanted]
    made = iter(torch.autograd.grad(ctx.fused.plain(*inputs), sources, upstream, create_graph=True))
    return [next(made) if is_wanted else None for is_wanted in wanted]
