"""The losses once more, from their formulas: Python floats, plain loops, nothing shared with the package."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tensafe.training.losses import ResolvedLoss

Rows = list[list[tuple[float, float]]]
"""Sequences of (value, weight)."""


def logsumexp(numbers: Sequence[float]) -> float:
    largest = max(numbers)
    return largest + math.log(math.fsum(math.exp(number - largest) for number in numbers))


def cross_entropy(row: Sequence[float], label: int, label_smoothing: float) -> float:
    norm = logsumexp(row)
    uniform = math.fsum(norm - score for score in row) / len(row)
    return (1 - label_smoothing) * (norm - row[label]) + label_smoothing * uniform


def token_ce(
    logits: Tensor, labels: Tensor, *, shift: bool = True, ignore_index: int = -100, label_smoothing: float = 0.0
) -> Rows:
    """Rows of `[batch seq vocab]` logits; `[N vocab]` ones are a single row, and never shifted."""
    if logits.ndim == 2:
        logits, labels, shift = logits.unsqueeze(0), labels.unsqueeze(0), False
    rows: Rows = []
    for scores, given in zip(logits.double().tolist(), labels.tolist(), strict=True):
        targets = [*given[1:], ignore_index][: len(given)] if shift else given
        rows.append(
            [
                (0.0, 0.0) if target == ignore_index else (cross_entropy(row, target, label_smoothing), 1.0)
                for row, target in zip(scores, targets, strict=True)
            ]
        )
    return rows


def margin_ranking(chosen: Tensor, rejected: Tensor, *, margin: float = 1.0) -> list[float]:
    pairs = zip(_numbers(chosen), _numbers(rejected), strict=True)
    return [max(0.0, margin - (better - worse)) for better, worse in pairs]


def mse(predictions: Tensor, targets: Tensor) -> list[float]:
    return [(p - y) ** 2 for p, y in zip(_numbers(predictions), _numbers(targets), strict=True)]


def contrastive(a: Tensor, b: Tensor, *, temperature: float = 0.07, margin: float = 0.0) -> list[float]:
    ours, theirs = [_unit(row) for row in a.double().tolist()], [_unit(row) for row in b.double().tolist()]
    size = len(ours)
    scores = [[math.fsum(x * y for x, y in zip(u, v, strict=True)) for v in theirs] for u in ours]
    scores = [[(scores[i][j] - margin * (i == j)) / temperature for j in range(size)] for i in range(size)]
    columns = [[scores[i][j] for i in range(size)] for j in range(size)]
    return [(logsumexp(scores[i]) + logsumexp(columns[i])) / 2 - scores[i][i] for i in range(size)]


def reduced(
    rows: Rows,
    reduction: str,
    *,
    max_length: int | None = None,
    num_items: float | None = None,
    num_sequences: float | None = None,
) -> float:
    """One number of rows of (value, weight)."""
    sums = [math.fsum(value * weight for value, weight in row if weight) for row in rows]
    counts = [math.fsum(weight for _, weight in row) for row in rows]
    if reduction == "sum":
        return math.fsum(sums)
    if reduction == "mean":
        return _ratio(math.fsum(sums), math.fsum(counts) if num_items is None else num_items)
    divisors = {"sequence_mean": counts, "sequence_sum": [1.0] * len(rows)}
    each = divisors.get(reduction, [float(max_length or math.nan)] * len(rows))
    parts = [total / divisor for total, count, divisor in zip(sums, counts, each, strict=True) if count]
    return _ratio(math.fsum(parts), len(parts) if num_sequences is None else num_sequences)


def elements(values: Sequence[float]) -> Rows:
    """One row in which everything counts once."""
    return [[(value, 1.0) for value in values]]


def loss_and_gradients(
    loss_fn: ResolvedLoss, outputs: Mapping[str, Tensor], batch: Mapping[str, Any] | None = None, **overrides: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call a loss on copies of what the model gave, and return the loss and the gradient of each."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in outputs.items()}
    loss = loss_fn(leaves, {} if batch is None else batch, **overrides)["loss"]
    torch.autograd.backward(loss.sum())
    return loss.detach(), {name: _gradient(leaf) for name, leaf in leaves.items()}


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def _ratio(total: float, count: float) -> float:
    return total / count if count else 0.0


def _unit(row: Sequence[float]) -> list[float]:
    length = math.hypot(*row)
    return [number / length if length else 0.0 for number in row]


def _numbers(tensor: Tensor) -> list[float]:
    numbers: list[float] = tensor.to(torch.float64).reshape(-1).tolist()
    return numbers
