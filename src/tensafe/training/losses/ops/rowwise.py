"""Operations on the rows of large matrices, gone over a few rows at a time, forwards and backwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fused import Fused, dot, results, weighted_sum
from .lean import clear_rows, compute_dtype, is_lean, is_predicting, rows_per_chunk
from .overwriting import check_untouched

__all__ = ["RowKernel", "Rows", "chunked", "chunked_dot", "slices"]


class Rows(NamedTuple):
    """A few rows of the inputs, and room to work in.

    Attributes:
        at: Which rows.
        inputs: `[k width]` of each input, in its own dtype.
        upstream: `[k 1]` for each result; None where no gradient is wanted.
        wanted: Whether the gradient of each input is wanted.
        out: For each input, room of `[k width]` in the dtype that is computed in; its gradient is left there.
        scratch: As much room again for each input.
    """

    at: slice
    inputs: Sequence[Tensor]
    upstream: Sequence[Tensor] | None
    wanted: Sequence[bool]
    out: Sequence[Tensor]
    scratch: Sequence[Tensor]


class RowKernel(Fused):
    """An operation that does the same with each row.

    Attributes:
        counts: Which rows count; None is all.
    """

    counts: Tensor | None = None

    @abstractmethod
    def run_rows(self, rows: Rows) -> tuple[Tensor, ...]:
        """Return what each row gives, `[k]` for each result; where a gradient is wanted, write it."""

    def run(
        self, inputs: Sequence[Any], upstream: Sequence[Tensor] | None, wanted: Sequence[bool]
    ) -> tuple[tuple[Tensor, ...], Sequence[Tensor | None]]:
        """Go over the rows."""
        count, width = inputs[0].shape
        step = rows_per_chunk(count, width * len(inputs), inputs[0].device)
        dtype = compute_dtype(inputs[0].dtype)
        into = [
            torch.empty_like(tensor) if is_wanted else None for tensor, is_wanted in zip(inputs, wanted, strict=True)
        ]
        room = torch.empty((2 * len(inputs), step, width), dtype=dtype, device=inputs[0].device)
        made_by_chunk: list[tuple[Tensor, ...]] = []
        for at in slices(0, count, step):
            made, scratch = room[:, : at.stop - at.start].chunk(2)
            out = [
                part if whole is None or whole.dtype is not dtype else whole[at]
                for whole, part in zip(into, made, strict=True)
            ]
            given = None if upstream is None else [each[at].unsqueeze(1) for each in upstream]
            made_by_chunk.append(
                self.run_rows(Rows(at, [tensor[at] for tensor in inputs], given, wanted, out, list(scratch)))
            )
            for whole, part in zip(into, out, strict=True):
                if whole is not None and whole.dtype is not dtype:
                    whole[at].copy_(part)
        if upstream is not None:
            _clear(into, upstream, self.counts)
        return tuple(_joined(parts, self.counts, count) for parts in zip(*made_by_chunk, strict=True)), into


def chunked(kernel: RowKernel, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the results of a kernel on all rows."""
    if is_lean(inputs[0].numel(), *inputs, kernel.counts):
        check_untouched(*inputs)
        return results(kernel, *inputs)
    return kernel.plain(*inputs)


def chunked_dot(kernel: RowKernel, coefficients: Tensor, *inputs: Tensor) -> Tensor:
    """Return the sum of coefficients times the only result of a kernel, with the gradient made in the forward pass."""
    # a float16 gradient that is made before the loss scale is known would underflow
    if is_lean(inputs[0].numel(), *inputs, kernel.counts) and inputs[0].dtype is not torch.float16:
        check_untouched(*inputs)
        return dot(kernel, coefficients, *inputs)
    (values,) = chunked(kernel, *inputs)
    return weighted_sum(values, coefficients)


def _clear(into: Sequence[Tensor | None], upstream: Sequence[Tensor], counts: Tensor | None) -> None:
    """Zero the gradient of rows that do not count, or to which nothing comes down."""
    drop = torch.stack([each == 0 for each in upstream]).all(0)
    if counts is not None:
        drop |= ~counts
    for whole in into:
        if whole is not None:
            clear_rows(whole, drop)


def _joined(parts: Sequence[Tensor], counts: Tensor | None, rows: int) -> Tensor:
    whole = torch.cat(list(parts))
    if whole.shape[0] < rows:  # not all chunks are gone over while predicting
        whole = whole.new_empty(rows)
    return whole if counts is None else torch.where(counts, whole, 0.0)


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield consecutive slices; while predicting only the first two and the last, since no other needs more."""
    begins = range(start, stop, step)
    for begin in sorted({*begins[:2], *begins[-1:]}) if is_predicting() else begins:
        yield slice(begin, min(begin + step, stop))
