"""Tensors that hold what their names say, as `sample_values` has it, made of numbers that shrink."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import strategies as st

from tensafe.training.losses.contract import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy
    from torch import Tensor

    from tensafe.training.losses.contract import Values

    from .needs import Layout, Need

__all__ = ["tensors"]

_EIGHTHS = 8
_LARGEST = 8
_MOST_DRAWN = 200
_CLASSES = 3
_LONGEST = 8
_MOST_STEPS = 2000


@st.composite
def tensors(draw: DrawFn, need: Need, layout: Layout, dtype: str) -> Tensor:
    """Draw a tensor that a loss takes; `dtype` is that of floats."""
    sizes = layout.shape(need.spec)
    # an empty one is cut from one that is not, or a case would shrink to nothing: that takes the fewest draws
    drawn = draw(_of_shape(need, layout, dtype, [max(size, 1) for size in sizes]))
    return drawn[tuple(slice(size) for size in sizes)]


@st.composite
def _of_shape(draw: DrawFn, need: Need, layout: Layout, dtype: str, shape: list[int]) -> Tensor:
    kind = need.spec.kind
    if kind in {"num", "any"}:
        kind = draw(st.sampled_from(["float", "int"]))
    if kind == "bool":
        return _as_tensor(draw(_flags(math.prod(shape))), "bool", shape)
    numbers = draw(_integers(need, layout, shape) if kind == "int" else _floats(need, shape))
    if kind == "float":
        return _as_tensor(numbers, dtype, shape)
    fitting = [each for each in DTYPES["int"] if _fits(numbers, each)]
    return _as_tensor(numbers, draw(st.sampled_from(fitting)), shape)


def _as_tensor(numbers: Sequence[Any], dtype: str, shape: Sequence[int]) -> Tensor:
    return torch.tensor(numbers, dtype=getattr(torch, dtype)).reshape(tuple(shape))


def _fits(numbers: Sequence[int], dtype: str) -> bool:
    limits = torch.iinfo(getattr(torch, dtype))
    return all(limits.min <= number <= limits.max for number in numbers)


def _many(elements: SearchStrategy[Any], count: int) -> SearchStrategy[list[Any]]:
    """Return lists of so many elements; in very long ones they repeat."""
    drawn = min(count, _MOST_DRAWN)
    lists = st.lists(elements, min_size=drawn, max_size=drawn)
    return lists if count == drawn else lists.map(lambda some: (some * math.ceil(count / drawn))[:count])


def _flags(count: int) -> SearchStrategy[list[bool]]:
    """Return flags: all set, none set, or some."""
    return st.just([True] * count) | st.just([False] * count) | _many(st.booleans(), count)


def _eighths(low: int, high: int) -> SearchStrategy[float]:
    """Return numbers in a range that are exact in every dtype."""
    return st.integers(low * _EIGHTHS, high * _EIGHTHS).map(lambda number: number / _EIGHTHS)


def _floats(need: Need, shape: Sequence[int]) -> SearchStrategy[list[Any]]:
    spec, count = need.spec, math.prod(shape)
    name = spec.name
    if spec.values is not None:
        return _shares(shape) if spec.values.sums_to_one else _many(_declared(spec.values), count)
    if name.endswith("lengths"):
        return _many(st.integers(1, _LONGEST).map(float), count)
    if name.endswith("probs"):
        return _shares(shape)
    if name.endswith("logps"):
        among_others = bool(spec.dims) and spec.dims[-1] not in {"batch", "seq", "*rows"}
        return _log_shares(shape) if among_others else _many(_eighths(-_LARGEST, 0), count)
    least = 0 if name.endswith(("nll", "margins", "weights")) else -_LARGEST
    return _many(_eighths(least, _LARGEST), count)


def _declared(values: Values) -> SearchStrategy[float]:
    if values.among:
        return st.sampled_from(values.among)
    low, high = values.low, values.high
    if low is not None and high is not None:
        return st.sampled_from([low, high]) | st.integers(1, _EIGHTHS - 1).map(
            lambda part: low + (high - low) * part / _EIGHTHS
        )
    sizes = _eighths(0, _LARGEST)
    if low is not None:
        return sizes.map(lambda size: low + size)
    return _eighths(-_LARGEST, _LARGEST) if high is None else sizes.map(lambda size: high - size)


def _shares(shape: Sequence[int], *, rest: int = 0) -> SearchStrategy[list[float]]:
    """Return probabilities that add up to 1 along the last axis, or to less where there is a rest beside them."""
    width = shape[-1] if shape else 1
    row = st.lists(st.integers(0, 4), min_size=width, max_size=width).map(lambda parts: _normalised(parts, rest))
    rows = _many(row, math.prod(shape[:-1]))
    return rows.map(lambda drawn: [share for row in drawn for share in row])


def _normalised(parts: list[int], rest: int) -> list[float]:
    if not any(parts):
        parts = [1, *parts[1:]]
    return [part / (sum(parts) + rest) for part in parts]


def _log_shares(shape: Sequence[int]) -> SearchStrategy[list[float]]:
    """Return log-probabilities of some classes among others."""
    return _shares(shape, rest=1).map(lambda shares: [math.log(max(share, 1e-3)) for share in shares])


def _integers(need: Need, layout: Layout, shape: Sequence[int]) -> SearchStrategy[list[Any]]:
    spec, count = need.spec, math.prod(shape)
    if need.key == "step" and not shape:
        return _many(st.integers(0, _MOST_STEPS), count)
    if spec.values is not None:
        return _many(_declared(spec.values).map(int), count)
    if spec.name.endswith("lengths"):
        return _many(st.integers(1, _LONGEST), count)
    if spec.name.endswith("mask"):
        return _flags(count).map(lambda flags: [int(flag) for flag in flags])
    if spec.kind != "int":  # a number that happens to be whole
        least = 0 if spec.name.endswith(("nll", "margins", "weights")) else -_LARGEST
        return _many(st.integers(least, _LARGEST), count)
    return _ids(need, layout, shape)


def _ids(need: Need, layout: Layout, shape: Sequence[int]) -> SearchStrategy[list[int]]:
    count = math.prod(shape)
    classes = layout.sizes[need.ids] if need.ids is not None else _CLASSES
    ids = st.integers(0, classes - 1)
    if len(shape) > 2 and shape[-1] <= classes:  # several of one position, all different
        row = st.permutations(range(classes)).map(lambda order: order[: shape[-1]])
        return _many(row, math.prod(shape[:-1])).map(lambda rows: [each for row in rows for each in row])
    if need.ignore_index is None:
        return _many(ids, count)
    none = [need.ignore_index] * count
    return _many(ids, count) | st.just(none) | _many(ids | st.just(need.ignore_index), count)
