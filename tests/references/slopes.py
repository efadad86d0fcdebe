"""Gradients of plain functions of floats, by central differences."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_STEP = 1e-5


def slopes(function: Callable[[list[float]], float], at: Tensor) -> Tensor:
    """The gradient of a function of the numbers of a tensor, in its shape; off by about 1e-10 where it is smooth."""
    numbers: list[float] = at.double().reshape(-1).tolist()
    found = [_slope(function, numbers, index) for index in range(len(numbers))]
    return torch.tensor(found, dtype=torch.float64).reshape(at.shape)


def _slope(function: Callable[[list[float]], float], numbers: Sequence[float], index: int) -> float:
    above, below = ([*numbers[:index], numbers[index] + step, *numbers[index + 1 :]] for step in (_STEP, -_STEP))
    return (function(above) - function(below)) / (2 * _STEP)
