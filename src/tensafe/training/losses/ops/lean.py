"""When an operation may work in chunks, and how large the chunks are.

In eager mode an operation on a large tensor goes over a few rows at a time, so that no temporary is as large as its
input. A compiler fuses the plain formula itself, and functorch, fake tensors and tensor subclasses need one that they
can look through: which of the two runs depends on such states and on shapes, never on values.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import Parameter

__all__ = [
    "clear_rows",
    "compute_dtype",
    "is_lean",
    "is_plain",
    "is_predicting",
    "live_rows",
    "predicting",
    "rows_per_chunk",
    "scale_",
]

LEAST_LEAN = 2**20
"""Elements below which the plain formula is the faster one."""

CHUNK_ON_CPU, CHUNK_ELSEWHERE = 2**19, 2**24
"""Elements of a chunk: on a CPU what its cache holds, elsewhere what keeps a kernel busy."""

_C: Any = torch._C
_forward_ad: Any = forward_ad

_live_share: ContextVar[float | None] = ContextVar("live_share", default=None)


@contextmanager
def predicting(live_share: float = 1.0) -> Generator[None]:
    """Let fake and meta tensors take the path that real ones would, to count the bytes that a step needs.

    Args:
        live_share: Which share of the rows is taken to count.
    """
    token = _live_share.set(live_share)
    try:
        yield
    finally:
        _live_share.reset(token)


def is_predicting() -> bool:
    """Return whether what runs is only there to count bytes."""
    return _live_share.get() is not None


def live_rows(live: Bool[Tensor, " n"]) -> Int[Tensor, " m"]:
    """Return which rows are live; while predicting, as many as are said to be."""
    share = _live_share.get()
    if share is None:
        return live.nonzero().view(-1)
    return torch.arange(round(share * live.shape[0]), device=live.device)


def is_lean(elements: int, *tensors: Shaped[Tensor, "*_"] | None) -> bool:
    """Return whether an operation on a matrix of so many elements works in chunks."""
    if torch.compiler.is_compiling():  # first: a compiler would make a graph for each side of the comparison
        return False
    return 0 < elements >= LEAST_LEAN and not is_plain(*tensors)


def is_plain(*tensors: Shaped[Tensor, "*_"] | None) -> bool:
    """Return whether the plain formula must be used: the call is traced, transformed, or on tensors without data."""
    if torch.compiler.is_compiling() or _C._get_tracing_state() is not None:
        return True
    if _C._functorch.peek_interpreter_stack() is not None or _forward_ad._current_level >= 0:
        return True
    if _C._len_torch_dispatch_stack() and get_proxy_mode() is not None:
        return True
    for tensor in tensors:  # no generator: this is most of what a small loss has to pay
        kind = type(tensor)
        if kind is Tensor or kind is Parameter or tensor is None:
            if tensor is not None and tensor.is_meta and not is_predicting():
                return True
        elif kind is not FakeTensor or not is_predicting():
            return True
    return False


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that an operation computes in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def rows_per_chunk(rows: int, width: int, device: torch.device) -> int:
    """Return how many of the rows go into one chunk, at least one."""
    elements = CHUNK_ON_CPU if device.type == "cpu" else CHUNK_ELSEWHERE
    return max(1, min(rows, elements // max(width, 1)))


def clear_rows(matrix: Shaped[Tensor, "n width"], drop: Bool[Tensor, " n"]) -> None:
    """Zero rows in place, whatever they hold; NaN too."""
    if matrix.is_cpu and type(matrix) is Tensor:
        matrix.index_fill_(0, drop.nonzero().view(-1), 0.0)
    else:  # how many there are is a sync away
        matrix.masked_fill_(drop.unsqueeze(1), 0.0)


def scale_(gradient: Shaped[Tensor, "*_"], upstream: Shaped[Tensor, ""]) -> Shaped[Tensor, "*_"]:
    """Multiply in place by what comes down to a scalar loss; on a CPU a look at it may save going over the gradient."""
    if type(upstream) is Tensor and upstream.is_cpu and upstream.item() == 1.0:
        return gradient
    return gradient.mul_(upstream)
