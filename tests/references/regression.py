"""Losses of predictions against targets, from their formulas in plain floats, and what hypothesis draws for them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows
from strategies import tensors


def l1(prediction: float, target: float) -> float:
    return max(prediction - target, target - prediction)


def huber(prediction: float, target: float, *, delta: float = 1.0) -> float:
    size = abs(prediction - target)
    return size * size / 2 if size <= delta else delta * (size - delta / 2)


def bce(logit: float, target: float, *, pos_weight: float = 1.0, label_smoothing: float = 0.0) -> float:
    target = target * (1 - label_smoothing) + label_smoothing / 2
    yes, no = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(logit))
    return -pos_weight * target * math.log(yes) - (1 - target) * math.log(no)


def cross_entropy(
    row: Sequence[float], label: int, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
) -> float:
    weights = [1.0] * len(row) if class_weights is None else class_weights
    total = math.fsum(math.exp(score) for score in row)
    costs = [-weight * math.log(math.exp(score) / total) for score, weight in zip(row, weights, strict=True)]
    return (1 - label_smoothing) * costs[label] + label_smoothing * math.fsum(costs) / len(row)


class Drawn(NamedTuple):
    """Predictions, targets and a mask of one shape."""

    predictions: Tensor
    targets: Tensor
    mask: Tensor

    def named(self, predictions: str, targets: str = "targets") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """As outputs and batch."""
        return {predictions: self.predictions}, {targets: self.targets, "mask": self.mask}

    def spoilt(self) -> "Drawn":
        """The same with NaN where nothing counts."""
        predictions, targets = (torch.where(self.mask, side, torch.nan) for side in (self.predictions, self.targets))
        return Drawn(predictions, targets, self.mask)

    def rows(self, formula: Any, predictions: Sequence[float] | None = None, **kwargs: Any) -> Rows:
        """The value and the weight of each element, as one row."""
        ours = self.predictions.reshape(-1).tolist() if predictions is None else predictions
        triples = zip(ours, self.targets.reshape(-1).tolist(), self.mask.reshape(-1).tolist(), strict=True)
        return [[(formula(p, y, **kwargs), float(counts)) for p, y, counts in triples]]


@st.composite
def drawn(draw: st.DrawFn, *, least: float = -8.0, most: float = 8.0) -> Drawn:
    """Up to two axes; perhaps nothing counts. Targets lie between `least` and `most`."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=2)))
    size = math.prod(shape)
    targets = draw(st.lists(st.floats(least, most, width=32, allow_subnormal=False), min_size=size, max_size=size))
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return Drawn(
        draw(tensors(shape)),
        torch.tensor(targets, dtype=torch.float64).reshape(shape),
        torch.tensor(mask, dtype=torch.bool).reshape(shape),
    )


class Classified(NamedTuple):
    """Logits and labels of a classifier, and what its classes weigh."""

    logits: Tensor
    labels: Tensor
    class_weights: list[float]

    def rows(self, logits: Sequence[float] | None = None, *, weighted: bool, label_smoothing: float) -> Rows:
        """The value, before the weight of its label, and that weight, of each sample that counts, as one row."""
        classes = len(self.class_weights)
        flat = self.logits.reshape(-1).tolist() if logits is None else logits
        weights = self.class_weights if weighted else [1.0] * classes
        row: list[tuple[float, float]] = []
        for index, label in enumerate(self.labels.tolist()):
            weight = 0.0 if label == -100 else weights[label]
            scores = flat[index * classes : (index + 1) * classes]
            kwargs: Mapping[str, Any] = {"class_weights": weights, "label_smoothing": label_smoothing}
            row.append((cross_entropy(scores, label, **kwargs) / weight if weight else 0.0, weight))
        return [row]


@st.composite
def classified(draw: st.DrawFn) -> Classified:
    """Up to four samples, some of them ignored; a class may weigh nothing, but not all of them."""
    samples, classes = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    labels = draw(st.lists(st.sampled_from([-100, *range(classes)]), min_size=samples, max_size=samples))
    weights = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=classes, max_size=classes).filter(any))
    return Classified(draw(tensors((samples, classes))), torch.tensor(labels, dtype=torch.int64), weights)
