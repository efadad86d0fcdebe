"""Policy gradients once more, from the papers: Python floats, plain loops, derivatives by hand."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows, loss_and_gradients, reduced
from strategies import tensors
from tensafe.training.losses import resolve_loss

MODES = ("none", "sum", "mean", "sequence_mean", "sequence_sum", "sequence_sum_norm")
MAX_LENGTH = 7


class Sampled(NamedTuple):
    """Completions that were sampled, `[batch seq]`; `advantages` may be `[batch]`."""

    logps: Tensor
    advantages: Tensor
    mask: Tensor
    old_logps: Tensor
    ref_logps: Tensor
    rollout_logps: Tensor

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {"logps": self.logps}

    @property
    def batch(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._asdict().items() if name != "logps"}

    @property
    def per_token(self) -> Tensor:
        wide = self.advantages.unsqueeze(1) if self.advantages.ndim == 1 else self.advantages
        return wide.expand(self.logps.shape)


@st.composite
def sampled(draw: st.DrawFn, *, least: int = 0) -> Sampled:
    """A batch in which some tokens, perhaps all, do not count."""
    shape = (draw(st.integers(least, 3)), draw(st.integers(least, 4)))
    logps = -draw(tensors(shape, 3.0)).abs()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))  # to draw each number would take long
    old, ref, rollout = (-3 * torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    advantages = draw(tensors(draw(st.sampled_from([shape, shape[:1]])), 2.0))
    size = shape[0] * shape[1]
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool).reshape(shape)
    return Sampled(logps, advantages, mask, old, ref, rollout)


def corrections() -> st.SearchStrategy[dict[str, Any]]:
    """The kwargs that every policy loss has; without k1, which warns."""
    return st.fixed_dictionaries(
        {
            "kl_coef": st.sampled_from([0.0, 0.1, 2.0]),
            "kl_estimator": st.sampled_from(["k2", "k3", "k3+", "abs"]),
            "rollout_ratio_max": st.sampled_from([None, 0.5, 3.0]),
            "kl_rollout_weighted": st.booleans(),
        }
    ).map(_with_effect)


def _with_effect(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Weigh the divergence only where there are both, a weight and a divergence."""
    both = kwargs["rollout_ratio_max"] is not None and kwargs["kl_coef"] > 0
    return {**kwargs, "kl_rollout_weighted": kwargs["kl_rollout_weighted"] and both}


Term = tuple[float, float]
"""A value, and its derivative by the log-probability (or by the mean log-ratio of the sequence)."""


def ppo(ratio: float, advantage: float, low: float, high: float, dual: float | None = None) -> Term:
    if advantage > 0:
        return -min(ratio, 1 + high) * advantage, -ratio * advantage * (ratio <= 1 + high)
    top = math.inf if dual is None else dual
    return -min(max(ratio, 1 - low), top) * advantage, -ratio * advantage * (1 - low <= ratio <= top)


def kl(difference: float, estimator: str) -> Term:
    k3 = math.exp(-difference) - 1 + difference
    return {
        "k1": (difference, 1.0),
        "k2": (difference**2 / 2, difference),
        "k3": (k3, 1 - math.exp(-difference)),
        "k3+": (k3, difference),
        "abs": (abs(difference), math.copysign(float(difference != 0), difference)),
    }[estimator]


Formula = Callable[[float, float, float], Term]
"""Term of a token, of its log-probability, its log-ratio to the old policy and its advantage."""


def expected(
    drawn: Sampled,
    formula: Formula,
    mode: str,
    *,
    by_sequence: bool = False,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    rollout_ratio_max: float | None = None,
    kl_rollout_weighted: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient; `by_sequence`: the log-ratio is its mean over what counts of a sequence."""
    names = ("logps", "old_logps", "ref_logps", "rollout_logps")
    columns = [getattr(drawn, name).tolist() for name in names] + [drawn.per_token.tolist(), drawn.mask.tolist()]
    rows: Rows = []
    slopes: list[list[list[float]]] = []  # of the value of one token by the log-probability of another
    for row in zip(*columns, strict=True):
        tokens = list(zip(*row, strict=True))
        length = sum(token[-1] for token in tokens)
        shared = math.fsum(token[0] - token[1] for token in tokens if token[-1]) / max(length, 1)
        values: list[tuple[float, float]] = []
        slopes.append([[0.0] * len(tokens) for _ in tokens])
        for here, (logp, old, ref, rollout, advantage, counts) in enumerate(tokens):
            if not counts:
                values.append((0.0, 0.0))
                continue
            weight = 1.0 if rollout_ratio_max is None else min(math.exp(old - rollout), rollout_ratio_max)
            value, slope = formula(logp, shared if by_sequence else logp - old, advantage)
            penalty, pull = kl(logp - ref, kl_estimator)
            factor = kl_coef * (weight if kl_rollout_weighted else 1.0)
            values.append((weight * value + factor * penalty, 1.0))
            for there, token in enumerate(tokens):
                share = token[-1] / length if by_sequence else float(here == there)
                slopes[-1][here][there] = weight * slope * share
            slopes[-1][here][here] += factor * pull
        rows.append(values)
    return _total(rows, mode, drawn.logps), _gradient(rows, slopes, mode, drawn.logps)


def _total(rows: Rows, mode: str, like: Tensor) -> Tensor:
    if mode == "none":
        return torch.tensor([[v * w for v, w in row] for row in rows], dtype=like.dtype).reshape(like.shape)
    return torch.tensor(reduced(rows, mode, max_length=MAX_LENGTH), dtype=like.dtype)


def _gradient(rows: Rows, slopes: list[list[list[float]]], mode: str, like: Tensor) -> Tensor:
    """Every reduction is linear: what it makes of 1 in one place is the weight of that place."""
    gradient = torch.zeros_like(like)
    for i, row in enumerate(rows):
        for t, (_, counts) in enumerate(row):
            if not counts:
                continue
            unit = [[(float((i, t) == (j, u)), w) for u, (_, w) in enumerate(other)] for j, other in enumerate(rows)]
            weight = reduced(unit, "sum" if mode == "none" else mode, max_length=MAX_LENGTH)
            gradient[i] += weight * torch.tensor(slopes[i][t], dtype=like.dtype)
    return gradient


def kwargs_of(name: str, mode: str) -> dict[str, Any]:
    """The reduction, and `max_length` where it must be given."""
    return {"reduction": mode, **({"max_length": MAX_LENGTH} if name == "dr_grpo" or mode.endswith("norm") else {})}


def check(
    name: str,
    drawn: Sampled,
    formula: Formula,
    mode: str,
    *,
    by_sequence: bool = False,
    common: dict[str, Any],
    own: dict[str, Any] | None = None,
) -> None:
    """Compare the value and gradient of a loss with those of its formula."""
    loss_fn = resolve_loss(name, **kwargs_of(name, mode), **common, **(own or {}))
    loss, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    value, gradient = expected(drawn, formula, mode, by_sequence=by_sequence, **common)
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradients["logps"], gradient, rtol=1e-9, atol=1e-11)


def check_that_masked_tokens_have_no_effect(name: str, drawn: Sampled, junk: float, **kwargs: Any) -> None:
    """Fill with junk what does not count: nothing changes, and the junk has a gradient of exactly zero."""
    loss_fn = resolve_loss(name, kl_coef=0.5, rollout_ratio_max=2.0, **kwargs)
    spoilt = Sampled(*(_spoilt(tensor, drawn.mask, junk) for tensor in drawn._replace(advantages=drawn.per_token)))
    clean, gradients = loss_and_gradients(loss_fn, drawn.outputs, drawn.batch)
    found, found_gradients = loss_and_gradients(loss_fn, spoilt.outputs, spoilt.batch)
    assert torch.equal(found, clean)
    assert torch.equal(found_gradients["logps"], gradients["logps"])
    assert (found_gradients["logps"][~drawn.mask] == 0).all()
    metrics, others = (loss_fn(one.outputs, one.batch)["metrics"] for one in (drawn, spoilt))
    assert {name: float(metric) for name, metric in metrics.items()} == {
        name: float(metric) for name, metric in others.items()
    }


def _spoilt(tensor: Tensor, mask: Tensor, junk: float) -> Tensor:
    return tensor if tensor.dtype is torch.bool else torch.where(mask, tensor, junk)


def one_token(logp: float, old: float, advantage: float, **more: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and batch of a single token."""
    batch = {"old_logps": old, **more}
    tensors_of = {name: torch.tensor([[value]], dtype=torch.float64) for name, value in batch.items()}
    tensors_of |= {"advantages": torch.tensor([advantage], dtype=torch.float64), "mask": torch.tensor([[True]])}
    return {"logps": torch.tensor([[logp]], dtype=torch.float64)}, tensors_of
