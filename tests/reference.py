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


def cross_entropy(
    row: Sequence[float],
    label: int,
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> float:
    scores = [score * logit_scale for score in row]
    if softcap is not None:
        scores = [softcap * math.tanh(score / softcap) for score in scores]
    norm = logsumexp(scores)
    uniform = math.fsum(norm - score for score in scores) / len(scores)
    return (1 - label_smoothing) * (norm - scores[label]) + label_smoothing * uniform + z_loss * norm**2


def token_ce(logits: Tensor, labels: Tensor, *, shift: bool = True, ignore_index: int = -100, **formula: Any) -> Rows:
    """Rows of `[batch seq vocab]` logits; `[N vocab]` ones are a single row, and never shifted."""
    if logits.ndim == 2:
        logits, labels, shift = logits.unsqueeze(0), labels.unsqueeze(0), False
    rows: Rows = []
    for scores, given in zip(logits.double().tolist(), labels.tolist(), strict=True):
        targets = [*given[1:], ignore_index][: len(given)] if shift else given
        rows.append(
            [
                (0.0, 0.0) if target == ignore_index else (cross_entropy(row, target, **formula), 1.0)
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


# The operations once more, in float64 by autograd; rows that do not count are left out before anything is computed.


def cross_entropies(
    scores: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    scale: float = 1.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """`[n]` values of `[n vocab]` scores; every label counts."""
    z = scale * scores if softcap is None else softcap * torch.tanh(scale * scores / softcap)
    losses = -torch.log_softmax(z, 1)
    if class_weight is not None:
        losses = losses * class_weight.double()
    picked = losses.gather(1, labels.unsqueeze(1)).squeeze(1)
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * losses.mean(1)
    return picked + z_loss * torch.logsumexp(z, 1) ** 2 if z_loss else picked


def entropies(scores: Tensor) -> Tensor:
    log_p = torch.log_softmax(scores, 1)
    return -(log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(1)


def divergences(student: Tensor, teacher: Tensor, kind: str, beta: float, temperature: float) -> Tensor:
    log_s, log_p = (torch.log_softmax(scores / temperature, 1) for scores in (student, teacher))
    if kind == "jsd":
        log_m = torch.logaddexp(log_p + math.log(beta), log_s + math.log(1 - beta))
        return beta * _relative_entropy(log_p, log_m) + (1 - beta) * _relative_entropy(log_s, log_m)
    if kind == "skew_kl":
        return _relative_entropy(log_p, torch.logaddexp(log_p + math.log(beta), log_s + math.log(1 - beta)))
    if kind == "skew_rkl":
        return _relative_entropy(log_s, torch.logaddexp(log_s + math.log(beta), log_p + math.log(1 - beta)))
    if kind == "symmetric_kl":
        return beta * _relative_entropy(log_p, log_s) + (1 - beta) * _relative_entropy(log_s, log_p)
    if kind == "tvd":
        return (log_p.exp() - log_s.exp()).abs().sum(1) / 2
    return _relative_entropy(log_p, log_s) if kind == "forward_kl" else _relative_entropy(log_s, log_p)


def info_nces(a: Tensor, b: Tensor, *, temperature: float, margin: float = 0.0, symmetric: bool = False) -> Tensor:
    scores = (a @ b.T - margin * torch.eye(a.shape[0], b.shape[0], dtype=torch.float64)) / temperature
    forth = -torch.log_softmax(scores, 1).diagonal()
    return (forth - torch.log_softmax(scores[:, : a.shape[0]], 0).diagonal()) / 2 if symmetric else forth


def _relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * torch.where(log_p.exp() > 0, log_p - log_q, 0.0)).sum(1)


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
