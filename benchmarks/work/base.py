"""What a piece of work is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Setting", "Step", "Work", "backward_of", "build", "clear_gradients", "equal_shares", "random"]

Step = Callable[[], Tensor]
"""What is timed: usually forward and backward. Returns the value, detached."""


class Setting(NamedTuple):
    """What a piece of work is made for.

    Attributes:
        sizes: Sizes of its tensors by name: `rows`, `vocab`, `batch`, `hidden`.
        dtype: Of its floating-point tensors.
        device: Where they are.
        chunk_size: Of the op, None to leave it to it.
    """

    sizes: Mapping[str, int]
    dtype: str = "float32"
    device: str = "cpu"
    chunk_size: int | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass
class Work:
    """Something to compute, and who can.

    Attributes:
        contenders: A builder each, called when it is the contender's turn: a peer is imported then.
        reset: Run before each step, outside of the timed part.
        unit: Bytes that memory is counted in; 0 is the base's own peak.
        unit_name: What they are.
        uncounted: Bytes of what the caller wants anyway, taken off the peak.
        reference: The value in float64.
        incomparable: Contenders that compute something else, whose value is not compared.
        compiled: Contenders that need a call at the true size before their memory is measured.
        peers: Contenders of other libraries.
        warm_up: False where a call takes so long that what the first one does besides is lost in it.
    """

    contenders: Mapping[str, Callable[[], Step]]
    reset: Callable[[], None]
    unit: int
    unit_name: str
    uncounted: int = 0
    reference: Callable[[], Tensor] | None = None
    incomparable: frozenset[str] = frozenset()
    compiled: frozenset[str] = frozenset()
    peers: Mapping[str, Callable[[], Step]] = field(default_factory=dict)
    warm_up: bool = True


def build(work: Work, contender: str) -> Step:
    """Return the step of a contender."""
    return {**work.contenders, **work.peers}[contender]()


def backward_of(forward: Callable[[], Tensor]) -> Step:
    """Return the step that runs a scalar forward and backward."""

    def step() -> Tensor:
        loss = forward()
        torch.autograd.backward(loss)
        return loss.detach()

    return step


def clear_gradients(*tensors: Tensor) -> Callable[[], None]:
    """Return the function that forgets the gradients of tensors."""

    def clear() -> None:
        for tensor in tensors:
            tensor.grad = None

    return clear


def equal_shares(count: int, device: str) -> Tensor:
    """Return the coefficients of a mean."""
    return torch.full((count,), 1 / count, device=device)


def random(*shape: int, setting: Setting, seed: int, scale: float = 1.0) -> Tensor:
    """Return the same normal numbers for each seed, in the setting's dtype."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(*shape, generator=generator)
    if scale != 1.0:
        numbers.mul_(scale)
    return numbers.to(setting.device, setting.torch_dtype)
