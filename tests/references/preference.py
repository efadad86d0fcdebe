"""The losses of preferences once more, from their formulas: Python floats, a pair at a time, nothing of the package."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from tensafe.training.losses import resolve_loss


class Pair(NamedTuple):
    """Log-probabilities of two completions, under the model and under the reference, and their lengths."""

    chosen: float
    rejected: float
    ref_chosen: float = 0.0
    ref_rejected: float = 0.0
    chosen_length: int = 1
    rejected_length: int = 1

    @property
    def gains(self) -> tuple[float, float]:
        return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

    @property
    def means(self) -> tuple[float, float]:
        return self.chosen / self.chosen_length, self.rejected / self.rejected_length

    @property
    def lead(self) -> float:
        return self.gains[0] - self.gains[1]

    @property
    def nll(self) -> float:
        return -self.chosen / self.chosen_length


class Example(NamedTuple):
    """Log-probabilities of one completion, and of a mismatched one."""

    logp: float
    ref_logp: float
    desirable: bool
    kl_logp: float = 0.0
    ref_kl_logp: float = 0.0


Formula = Callable[..., Sequence[float]]


def log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def smoothed(x: float, epsilon: float) -> float:
    return -(1 - epsilon) * log_sigmoid(x) - epsilon * log_sigmoid(-x)


def each(formula: Callable[..., float]) -> Formula:
    """A formula of one pair, for all of a batch."""
    return lambda pairs, **kwargs: [formula(pair, **kwargs) for pair in pairs]


def dpo(pair: Pair, beta: float) -> float:
    return math.log1p(math.exp(-beta * pair.lead))


def cdpo(pair: Pair, beta: float, label_smoothing: float) -> float:
    right, wrong = sigmoid(beta * pair.lead), sigmoid(-beta * pair.lead)
    return -(1 - label_smoothing) * math.log(right) - label_smoothing * math.log(wrong)


def robust_dpo(pair: Pair, beta: float, label_smoothing: float) -> float:
    right = -log_sigmoid(beta * pair.lead)
    swapped = -log_sigmoid(-beta * pair.lead)
    return ((1 - label_smoothing) * right - label_smoothing * swapped) / (1 - 2 * label_smoothing)


def ipo(pair: Pair, beta: float, length_normalise: bool) -> float:
    chosen, rejected = pair.gains
    if length_normalise:
        chosen, rejected = chosen / pair.chosen_length, rejected / pair.rejected_length
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge_dpo(pair: Pair, beta: float) -> float:
    return max(0.0, 1 - beta * pair.lead)


def sigmoid_norm(pair: Pair, beta: float) -> float:
    chosen, rejected = pair.gains
    return -log_sigmoid(beta * (chosen / pair.chosen_length - rejected / pair.rejected_length))


def simpo(pair: Pair, beta: float, gamma: float, label_smoothing: float) -> float:
    chosen, rejected = pair.means
    return smoothed(beta * (chosen - rejected - gamma / beta), label_smoothing)


def cpo(pair: Pair, beta: float, alpha: float, label_smoothing: float) -> float:
    return smoothed(beta * (pair.chosen - pair.rejected), label_smoothing) + alpha * pair.nll


def orpo(pair: Pair, beta: float) -> float:
    chosen, rejected = (math.exp(mean) for mean in pair.means)
    ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    return pair.nll - beta * log_sigmoid(math.log(ratio))


def rpo(pair: Pair, beta: float, alpha: float) -> float:
    return -log_sigmoid(beta * pair.lead) + alpha * pair.nll


def apo_zero(pair: Pair, beta: float) -> float:
    chosen, rejected = pair.gains
    return (1 - sigmoid(beta * chosen)) + sigmoid(beta * rejected)


def apo_down(pair: Pair, beta: float) -> float:
    return sigmoid(beta * pair.gains[0]) + (1 - sigmoid(beta * pair.lead))


def bco_pair(pair: Pair, beta: float) -> float:
    chosen, rejected = pair.gains
    return -math.log(sigmoid(beta * chosen)) - math.log(sigmoid(-beta * rejected))


def nca(pair: Pair, beta: float) -> float:
    chosen, rejected = (beta * gain for gain in pair.gains)
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def sppo(pair: Pair, beta: float) -> float:
    chosen, rejected = pair.gains
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def exo(pair: Pair, beta: float, label_smoothing: float) -> float:
    model = sigmoid(beta * pair.lead), sigmoid(-beta * pair.lead)
    labels = 1 - label_smoothing, label_smoothing
    return math.fsum(q * math.log(q / p) for q, p in zip(model, labels, strict=True))


def f_dpo(pair: Pair, beta: float, divergence: str, alpha: float) -> float:
    derivatives: dict[str, Callable[[float], float]] = {
        "reverse_kl": lambda u: math.log(u) + 1,
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: math.log(2 * u / (1 + u)),
        "alpha": lambda u: math.log(u) if alpha == 1 else u ** (alpha - 1) / (alpha - 1),
    }
    chosen, rejected = (derivatives[divergence](math.exp(gain)) for gain in pair.gains)
    return -log_sigmoid(beta * (chosen - rejected))


def aot(pairs: Sequence[Pair], beta: float, label_smoothing: float) -> list[float]:
    margins = [pair.chosen - pair.rejected for pair in pairs]
    references = sorted(pair.ref_chosen - pair.ref_rejected for pair in pairs)
    return [smoothed(beta * (m - references[_rank(margins, i)]), label_smoothing) for i, m in enumerate(margins)]


def aot_unpaired(pairs: Sequence[Pair], beta: float, label_smoothing: float) -> list[float]:
    chosen = [pair.gains[0] for pair in pairs]
    rejected = sorted(pair.gains[1] for pair in pairs)
    return [smoothed(beta * (c - rejected[_rank(chosen, i)]), label_smoothing) for i, c in enumerate(chosen)]


def kto(
    examples: Sequence[Example], beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> list[float]:
    mismatched = [example.kl_logp - example.ref_kl_logp for example in examples]
    baseline = max(0.0, math.fsum(mismatched) / max(len(mismatched), 1))
    values: list[float] = []
    for example in examples:
        gain = example.logp - example.ref_logp
        if example.desirable:
            values.append(desirable_weight * (1 - sigmoid(beta * (gain - baseline))))
        else:
            values.append(undesirable_weight * (1 - sigmoid(beta * (baseline - gain))))
    return values


def _rank(numbers: Sequence[float], index: int) -> int:
    return sum((other, i) < (numbers[index], index) for i, other in enumerate(numbers))


# Batches, and the comparison of a loss with its formula


class Batch(NamedTuple):
    """Pairs; with `lengths`, one in which a completion is empty holds NaN, and counts for nothing."""

    pairs: list[Pair]
    reference: bool = True
    lengths: bool = True

    @property
    def counted(self) -> list[int]:
        empty = [min(pair.chosen_length, pair.rejected_length) == 0 for pair in self.pairs]
        return [index for index in range(len(self.pairs)) if not (self.lengths and empty[index])]

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {name: self._column(name.removesuffix("_logps")) for name in ("chosen_logps", "rejected_logps")}

    @property
    def batch(self) -> dict[str, Tensor]:
        names = [*(["ref_chosen", "ref_rejected"] if self.reference else [])]
        made = {f"{name}_logps": self._column(name) for name in names}
        if self.lengths:
            for side in ("chosen", "rejected"):
                numbers = [getattr(pair, f"{side}_length") for pair in self.pairs]
                made[f"{side}_lengths"] = torch.tensor(numbers, dtype=torch.int64)
        return made

    def _column(self, name: str) -> Tensor:
        numbers = [getattr(pair, name) if i in self.counted else math.nan for i, pair in enumerate(self.pairs)]
        return torch.tensor(numbers, dtype=torch.float64)


@st.composite
def batches(
    draw: st.DrawFn, *, reference: bool = True, lengths: bool = False, empty: bool = True, bound: float = 8.0
) -> Batch:
    def logp() -> float:
        return draw(st.floats(-bound, -0.125, width=32))

    def length() -> int:
        return draw(st.sampled_from([*([0] if empty else []), 1, 2, 5])) if lengths else 1

    pairs: list[Pair] = []
    for _ in range(draw(st.integers(0, 4))):
        references = (logp(), logp()) if reference else (0.0, 0.0)
        pairs.append(Pair(logp(), logp(), *references, length(), length()))
    return Batch(pairs, reference, lengths)


def check(name: str, formula: Formula, drawn: Batch, mode: str, *, smooth: bool = True, **kwargs: Any) -> None:
    """Compare a loss and its gradient with its formula, and with the slope of that."""
    loss_fn = resolve_loss(name, reduction=mode, **kwargs)
    loss, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    defaults = {key: value for key, value in loss_fn.kwargs.items() if key not in _SHARED}
    pairs = [drawn.pairs[index] for index in drawn.counted]

    def total(moved: Sequence[Pair]) -> float:
        values = formula(moved, **defaults)
        return math.fsum(values) / (max(len(values), 1) if mode == "mean" else 1)

    if mode == "none":
        expected = torch.zeros(len(drawn.pairs), dtype=torch.float64)
        expected[drawn.counted] = torch.tensor(list(formula(pairs, **defaults)), dtype=torch.float64)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    else:
        assert loss.item() == pytest.approx(total(pairs), rel=1e-10, abs=1e-12)
    if smooth:
        for side in ("chosen", "rejected"):
            slopes = torch.zeros(len(drawn.pairs), dtype=torch.float64)
            for place, index in enumerate(drawn.counted):
                slopes[index] = _slope(total, pairs, place, side)
            torch.testing.assert_close(gradients[f"{side}_logps"], slopes, rtol=1e-6, atol=1e-6)


_SHARED = {"reduction", "metrics", "ignore_index", "shift", "reference_free"}


def _slope(
    total: Callable[[Sequence[Pair]], float], pairs: list[Pair], place: int, side: str, step: float = 1e-5
) -> float:
    def at(offset: float) -> float:
        moved = pairs[place]._replace(**{side: getattr(pairs[place], side) + offset})
        return total([*pairs[:place], moved, *pairs[place + 1 :]])

    return (at(step) - at(-step)) / (2 * step)


def apart(numbers: Sequence[float]) -> None:
    """Discard numbers that are so near each other that a step of `_slope` changes their order."""
    ordered = sorted(numbers)
    assume(all(high - low > 1e-3 for low, high in itertools.pairwise(ordered)))


def loss_of(name: str, *pairs: Pair, reference: bool = True, lengths: bool = False, **kwargs: Any) -> Tensor:
    """The loss of pairs, in float64."""
    batch = Batch(list(pairs), reference, lengths)
    return resolve_loss(name, **kwargs)(batch.outputs, batch.batch)["loss"]


BETAS = st.sampled_from([0.1, 0.5, 2.0])
SMOOTHINGS = st.sampled_from([0.0, 0.1, 0.45])
MODES = st.sampled_from(["sum", "mean", "none"])
BAD_BETAS: list[tuple[str, Any]] = [("beta", 0.0), ("beta", -1.0), ("beta", math.inf), ("beta", True), ("beta", None)]
BAD_SMOOTHINGS: list[tuple[str, Any]] = [("label_smoothing", 0.5), ("label_smoothing", -0.1)]
EVEN = Pair(-10.0, -12.0, -11.0, -11.0)
"""Gains of 1 and -1."""
