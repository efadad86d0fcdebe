"""The losses of tokens once more, from the papers' formulas: Python floats, plain loops, nothing shared."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows, logsumexp, loss_and_gradients, reduced
from strategies import tensors
from tensafe.training.losses import ResolvedLoss, resolve_loss

MODES = ("sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm")
IGNORED = -100
LN3 = math.log(3)

Value = Callable[[Sequence[float], int], float]
"""Of the scores at one position and its label."""


def softmax(scores: Sequence[float], temperature: float = 1.0) -> list[float]:
    softer = [score / temperature for score in scores]
    norm = logsumexp(softer)
    return [math.exp(score - norm) for score in softer]


def dft(scores: Sequence[float], label: int) -> float:
    p = softmax(scores)[label]
    return -p * math.log(p)


def focal(scores: Sequence[float], label: int, gamma: float, alpha: float | None) -> float:
    p = softmax(scores)[label]
    rest = math.fsum(each for index, each in enumerate(softmax(scores)) if index != label)
    return -(1.0 if alpha is None else alpha) * math.pow(rest, gamma) * math.log(p)


def entropy(scores: Sequence[float], temperature: float = 1.0) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(scores, temperature))


def soft_target_ce(scores: Sequence[float], targets: Sequence[float]) -> float:
    norm = logsumexp(scores)
    return math.fsum(q * (norm - score) for q, score in zip(targets, scores, strict=True))


def unlikelihood(
    scores: Sequence[float], label: int, negatives: Sequence[int], *, alpha: float = 1.0, mean: bool = False
) -> float:
    p = softmax(scores)
    costs = [-math.log(math.fsum(p[:c] + p[c + 1 :])) for c in negatives if c not in {IGNORED, label}]
    cost = math.fsum(costs) / (max(len(costs), 1) if mean else 1)
    return -math.log(p[label]) + alpha * cost


def slopes(value: Callable[[Sequence[float]], float], scores: Sequence[float]) -> list[float]:
    """The derivative by each score, from values on both sides of it."""
    step, found = 1e-5, []
    for index in range(len(scores)):
        high, low = (
            value([score + sign * step * (place == index) for place, score in enumerate(scores)]) for sign in (1, -1)
        )
        found.append((high - low) / (2 * step))
    return found


class Weighted(NamedTuple):
    """A batch of a loss of tokens; weights may be absent, and labels ignored."""

    logits: Tensor
    labels: Tensor
    token_weights: Tensor | None
    sample_weights: Tensor | None

    @property
    def batch(self) -> dict[str, Tensor]:
        weights = {"token_weights": self.token_weights, "sample_weights": self.sample_weights}
        return {"labels": self.labels, **{name: given for name, given in weights.items() if given is not None}}

    def positions(self, *, shift: bool) -> list[list[tuple[int, float]]]:
        """The label of each position and what it counts for; `IGNORED` and 0 where it does not."""
        sequences = []
        for index, labels in enumerate(self.labels.tolist()):
            weights = [1.0] * len(labels) if self.token_weights is None else self.token_weights[index].tolist()
            factor = 1.0 if self.sample_weights is None else float(self.sample_weights[index])
            pairs = [
                (label, weight * factor) if label != IGNORED and weight * factor else (IGNORED, 0.0)
                for label, weight in zip(labels, weights, strict=True)
            ]
            sequences.append([*pairs[1:], (IGNORED, 0.0)][: len(pairs)] if shift else pairs)
        return sequences

    def rows(self, value: Value, *, shift: bool = True) -> Rows:
        sequences = zip(self.logits.tolist(), self.positions(shift=shift), strict=True)
        return [
            [
                (value(scores, label), weight) if weight else (0.0, 0.0)
                for scores, (label, weight) in zip(sequence, positions, strict=True)
            ]
            for sequence, positions in sequences
        ]


@st.composite
def weighted_tokens(draw: st.DrawFn, *, least: int = 0, classes: int = 1) -> Weighted:
    """Logits `[batch seq vocab]` and labels, of up to 3 x 3 tokens, perhaps with weights, of which some are 0."""
    batch, seq, vocab = draw(st.integers(least, 3)), draw(st.integers(least, 3)), draw(st.integers(classes, 4))
    some = st.sampled_from([0.0, 0.5, 1.0, 2.0])

    def drawn(of: st.SearchStrategy[Any], *shape: int) -> Tensor:
        size = math.prod(shape)
        return torch.tensor(draw(st.lists(of, min_size=size, max_size=size))).reshape(shape)

    return Weighted(
        draw(tensors((batch, seq, vocab))),
        drawn(st.sampled_from([IGNORED, *range(vocab)]), batch, seq).long(),
        drawn(some, batch, seq).double() if draw(st.booleans()) else None,
        drawn(some, batch).double() if draw(st.booleans()) else None,
    )


def resolve(name: str, **kwargs: Any) -> ResolvedLoss:
    more = {"max_length": 7} if kwargs.get("reduction") == "sequence_sum_norm" else {}
    return resolve_loss(name, **{**kwargs, **more})


def assert_reduced(loss_fn: ResolvedLoss, outputs: dict[str, Tensor], batch: dict[str, Tensor], rows: Rows) -> None:
    """Every reduction is that of the rows, and `none` gives one of them for each position."""
    for mode in MODES:
        more: dict[str, Any] = {"max_length": 7} if mode == "sequence_sum_norm" else {}
        found = loss_fn(outputs, batch, reduction=mode, **more)["loss"].item()
        assert math.isclose(found, reduced(rows, mode, max_length=7), rel_tol=1e-9, abs_tol=1e-10), mode
    none = loss_fn(outputs, batch, reduction="none")["loss"]
    expected = torch.tensor([[value * weight for value, weight in row] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(none, expected.reshape(none.shape), rtol=1e-9, atol=1e-10)


def assert_slopes(loss_fn: ResolvedLoss, drawn: Weighted, value: Value, **more: Tensor) -> None:
    """The gradient of the sum is that of the formula, by differences, and exactly 0 where nothing counts."""
    outputs, batch = {"logits": drawn.logits}, {**drawn.batch, **more}
    _, gradients = loss_and_gradients(loss_fn, outputs, batch, reduction="sum")
    sequences = zip(drawn.logits.tolist(), drawn.positions(shift=True), gradients["logits"].tolist(), strict=True)
    for scores, positions, found in sequences:
        for row, (label, weight), gradient in zip(scores, positions, found, strict=True):
            expected = [weight * slope for slope in slopes(_at(value, label), row)] if weight else [0.0] * len(row)
            assert all(
                math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-8 * bool(weight))
                for a, b in zip(gradient, expected, strict=True)
            ), (gradient, expected)


def _at(value: Value, label: int) -> Callable[[Sequence[float]], float]:
    return lambda scores: value(scores, label)


def assert_nothing_where_nothing_counts(name: str, outputs: dict[str, Tensor], batch: dict[str, Any]) -> None:
    """Half of what is given does not count: NaN there changes neither the value nor the gradient of the rest."""
    labels = batch["labels"]
    assert (labels == IGNORED).any()
    for mode in ("mean", "none"):
        loss_fn = resolve(name, reduction=mode, shift=False)
        expected, right = loss_and_gradients(loss_fn, outputs, batch)
        spoilt = {key: _spoil(tensor, labels) for key, tensor in outputs.items()}
        loss, gradients = loss_and_gradients(
            loss_fn, spoilt, {key: _spoil(each, labels) for key, each in batch.items()}
        )
        assert torch.equal(loss, expected)
        for key, gradient in gradients.items():
            assert torch.equal(gradient, right[key])
            assert not gradient[labels == IGNORED].any()


def _spoil(tensor: Tensor, labels: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.shape[: labels.ndim] != labels.shape:
        return tensor
    ignored = (labels == IGNORED).reshape(*labels.shape, *[1] * (tensor.ndim - labels.ndim))
    return tensor.masked_fill(ignored, math.nan)
