"""Metrics between two lines of a log: added up where they are, looked at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["MetricMeans"]


class MetricMeans:
    """Means of metrics over calls of a loss, kept on their device until they are read.

    Reading a number off an accelerator waits for all that it has to do, so nothing is read before `read`, and that
    reads everything in one go.

    Example:
        >>> import torch
        >>> from tensafe.integrations.metrics import MetricMeans
        >>> means = MetricMeans()
        >>> means.add({"accuracy": torch.tensor(0.5)})
        >>> means.add({"accuracy": torch.tensor(1.0), "beta": 0.1})
        >>> means.read()
        {'accuracy': 0.75, 'beta': 0.1}
        >>> means.read()
        {}
    """

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._calls: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Add the metrics of a call: numbers and 0-d tensors."""
        for name, metric in metrics.items():
            value = metric.detach() if isinstance(metric, torch.Tensor) else metric
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._calls[name] = self._calls.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the mean of each metric over the calls that had it, and start anew; waits for the device once."""
        sums, calls = self._sums, self._calls
        self._sums, self._calls = {}, {}
        tensors = {name: value for name, value in sums.items() if isinstance(value, torch.Tensor)}
        totals = {**sums, **dict(zip(tensors, _numbers(list(tensors.values())), strict=True))}
        return {name: float(total) / calls[name] for name, total in totals.items()}


def _numbers(tensors: list[Tensor]) -> list[float]:
    if not tensors:
        return []
    device = tensors[0].device
    together: Any = torch.stack([tensor.to(device, torch.float32) for tensor in tensors])
    return cast("list[float]", together.tolist())
