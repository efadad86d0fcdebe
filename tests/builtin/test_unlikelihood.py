import math
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from references.tokens import (
    IGNORED,
    LN3,
    Weighted,
    assert_nothing_where_nothing_counts,
    assert_reduced,
    resolve,
    slopes,
    unlikelihood,
    weighted_tokens,
)
from tensafe.training.losses import LossConfigError, LossInputError

pytestmark = pytest.mark.usefixtures("path")
kwargs_of = st.fixed_dictionaries(
    {"alpha": st.sampled_from([0.0, 0.5, 1.0, 3.0]), "over_negatives": st.sampled_from(["sum", "mean"])}
)


class Avoiding(NamedTuple):
    """A batch with negatives, aligned with its labels."""

    tokens: Weighted
    negatives: Tensor

    @property
    def batch(self) -> dict[str, Tensor]:
        return {**self.tokens.batch, "negative_labels": self.negatives}

    def costs(self, alpha: float, over_negatives: str) -> list[list[tuple[Any, float]]]:
        """For each position a function of its scores, and what it counts for."""
        mean, sequences = over_negatives == "mean", []
        for positions, negatives in zip(self.tokens.positions(shift=True), self.negatives.tolist(), strict=True):
            aligned = [*negatives[1:], []][: len(negatives)]
            sequences.append(
                [
                    (lambda scores, y=label, c=ids: unlikelihood(scores, y, c, alpha=alpha, mean=mean), weight)
                    for (label, weight), ids in zip(positions, aligned, strict=True)
                ]
            )
        return sequences


@st.composite
def avoiding(draw: st.DrawFn) -> Avoiding:
    tokens = draw(weighted_tokens(classes=2))
    vocab, shape = tokens.logits.shape[-1], (*tokens.labels.shape, draw(st.integers(1, 3)))
    ids = draw(
        st.lists(st.sampled_from([IGNORED, *range(vocab)]), min_size=math.prod(shape), max_size=math.prod(shape))
    )
    return Avoiding(tokens, torch.tensor(ids, dtype=torch.int64).reshape(shape))


@pytest.mark.parametrize(
    ("logits", "labels", "negatives", "kwargs", "expected"),
    [
        pytest.param([[0.0] * 4], [0], [[1]], {}, math.log(4) - math.log(3 / 4), id="one negative"),
        pytest.param([[0.0] * 4], [0], [[1, 2]], {}, math.log(4) - 2 * math.log(3 / 4), id="two"),
        pytest.param([[0.0] * 4], [0], [[1, 2]], {"over_negatives": "mean"}, math.log(4) - math.log(3 / 4), id="mean"),
        pytest.param([[0.0] * 4], [0], [[1, -100]], {}, math.log(4) - math.log(3 / 4), id="filled up"),
        pytest.param(
            [[0.0] * 4], [0], [[1, -100]], {"over_negatives": "mean"}, math.log(4) - math.log(3 / 4), id="mean of one"
        ),
        pytest.param([[0.0] * 4], [0], [[-100, -100]], {}, math.log(4), id="none"),
        pytest.param([[0.0] * 4], [0], [[0, 0]], {}, math.log(4), id="the label itself"),
        pytest.param([[0.0] * 4], [0], [[1, 1]], {}, math.log(4) - 2 * math.log(3 / 4), id="twice the same"),
        pytest.param([[0.0] * 4], [0], [[1]], {"alpha": 0}, math.log(4), id="cross-entropy"),
        pytest.param([[0.0] * 4], [0], [[1]], {"alpha": 2.0}, math.log(4) - 2 * math.log(3 / 4), id="twice the weight"),
        pytest.param([[0.0, LN3]], [0], [[1]], {}, 2 * math.log(4), id="the likely one"),
        pytest.param([[0.0, LN3]], [1], [[0]], {}, 2 * math.log(4 / 3), id="the unlikely one"),
        pytest.param([[0.0, 50.0]], [0], [[1]], {}, 100.0, id="nearly certain"),
        pytest.param([[0.0, -50.0]], [0], [[1]], {}, 2 * math.exp(-50), id="nearly impossible"),
        pytest.param([[0.0, LN3, -math.inf]], [1], [[2]], {}, math.log(4 / 3), id="impossible"),
        pytest.param([[0.0, LN3], [1.0, 0.0]], [0, -100], [[1], [0]], {}, 2 * math.log(4), id="one ignored"),
        pytest.param([[[0.0, LN3], [5.0, 1.0]]], [[9, 0]], [[[9], [1]]], {}, 2 * math.log(4), id="shifted"),
    ],
)
def test_a_loss_by_hand(logits: Any, labels: Any, negatives: Any, kwargs: Any, expected: float) -> None:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    batch = {"labels": torch.tensor(labels), "negative_labels": torch.tensor(negatives)}
    found = resolve("unlikelihood", **kwargs)(outputs, batch)["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-13, abs=1e-15)


@given(avoiding(), kwargs_of)
def test_every_reduction_is_that_of_the_formula(drawn: Avoiding, kwargs: dict[str, Any]) -> None:
    rows = [
        [
            (cost(scores), weight) if weight else (0.0, 0.0)
            for scores, (cost, weight) in zip(sequence, costs, strict=True)
        ]
        for sequence, costs in zip(drawn.tokens.logits.tolist(), drawn.costs(**kwargs), strict=True)
    ]
    assert_reduced(resolve("unlikelihood", **kwargs), {"logits": drawn.tokens.logits}, drawn.batch, rows)


@given(avoiding(), kwargs_of)
def test_the_gradient_is_that_of_the_formula(drawn: Avoiding, kwargs: dict[str, Any]) -> None:
    loss_fn, logits = resolve("unlikelihood", reduction="sum", **kwargs), drawn.tokens.logits
    _, gradients = loss_and_gradients(loss_fn, {"logits": logits}, drawn.batch)
    expected = [
        [
            [weight * slope for slope in slopes(cost, row)] if weight else [0.0] * len(row)
            for row, (cost, weight) in pairs
        ]
        for pairs in (zip(*each, strict=True) for each in zip(logits.tolist(), drawn.costs(**kwargs), strict=True))
    ]
    reference = torch.tensor(expected, dtype=torch.float64).reshape(logits.shape)
    torch.testing.assert_close(gradients["logits"], reference, rtol=1e-6, atol=1e-8)


@given(weighted_tokens())
def test_without_negatives_it_is_token_ce(drawn: Weighted) -> None:
    batch = {**drawn.batch, "negative_labels": torch.full((*drawn.labels.shape, 2), IGNORED)}
    for mode in ("mean", "none"):
        found = loss_and_gradients(resolve("unlikelihood", reduction=mode), {"logits": drawn.logits}, batch)
        expected = loss_and_gradients(resolve("token_ce", reduction=mode), {"logits": drawn.logits}, drawn.batch)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("gap", [1.0, 10.0, 17.0, 30.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_negative_that_is_all_but_certain_is_exact(gap: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, 3.0 + gap, 2.0]], dtype=dtype)
    batch = {"labels": torch.tensor([0]), "negative_labels": torch.tensor([[1, IGNORED]])}
    loss, gradients = loss_and_gradients(resolve("unlikelihood"), {"logits": logits}, batch)
    exact = logits[0].double().tolist()
    others = [math.exp(score - exact[1]) for score in (exact[0], exact[2])]
    total = 1 + math.fsum(others)
    cost = math.log(total) - math.log(math.fsum(others))
    assert loss.item() == pytest.approx(cost + math.log(total) + exact[1] - exact[0], rel=1e-6)
    p, rest = [others[0] / total, 1 / total, others[1] / total], math.fsum(others)
    expected = [p[0] - 1 + p[0] - others[0] / rest, 2 * p[1], 2 * p[2] - others[1] / rest]
    assert gradients["logits"][0].tolist() == pytest.approx(
        expected, rel=max(2e-6, 2 * torch.finfo(dtype).eps), abs=1e-6
    )


@pytest.mark.parametrize("scale", [1e3, 1e30])
@pytest.mark.parametrize("factor", [1.0, 2.0**16])
def test_a_certain_negative_has_a_bounded_cost_that_still_pushes_it_down(scale: float, factor: float) -> None:
    logits = torch.tensor([[0.0, scale, 0.0]]).requires_grad_()
    batch = {"labels": torch.tensor([0]), "negative_labels": torch.tensor([[1] * 8])}
    loss = resolve("unlikelihood")({"logits": logits}, batch)["loss"]
    torch.autograd.backward(factor * loss)
    assert loss.isfinite()
    assert logits.grad is not None
    assert (logits.grad / factor).tolist() == [pytest.approx([-1.0, 9.0, 0.0])]


def test_ties_are_all_alike() -> None:
    outputs = {"logits": torch.tensor([[2.0, 2.0, 2.0, -9.0]], dtype=torch.float64)}
    for negative in range(3):
        batch = {"labels": torch.tensor([3]), "negative_labels": torch.tensor([[negative]])}
        _, gradients = loss_and_gradients(resolve("unlikelihood"), outputs, batch)
        expected = slopes(partial(unlikelihood, label=3, negatives=[negative]), outputs["logits"][0].tolist())
        assert gradients["logits"][0].tolist() == pytest.approx(expected, abs=1e-8)


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    batch = {"labels": torch.tensor([[0, -100, 3]] * 2), "negative_labels": torch.arange(12).reshape(2, 3, 2) % 4}
    assert_nothing_where_nothing_counts("unlikelihood", {"logits": logits}, batch)


def test_metrics() -> None:
    outputs = {"logits": torch.tensor([[0.0, LN3], [0.0, 0.0], [9.0, 0.0]])}
    batch = {"labels": torch.tensor([0, 1, -100]), "negative_labels": torch.tensor([[1], [-100], [0]])}
    metrics = resolve("unlikelihood", alpha=7.0)(outputs, batch)["metrics"]
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
        {"num_tokens": 2, "nll": (math.log(4) + math.log(2)) / 2, "unlikelihood": math.log(4) / 2}
    )


@pytest.mark.parametrize("name", ["labels", "negative_labels"])
@pytest.mark.parametrize("bad", [4, -1])
def test_an_id_out_of_range_is_named(name: str, bad: int) -> None:
    batch = {"labels": torch.tensor([0, 1]), "negative_labels": torch.tensor([[1], [2]])}
    batch[name] = torch.full_like(batch[name], bad)
    with pytest.raises(LossInputError, match=rf"^unlikelihood: '{name}' must lie in \[0, 4\) .*; 2 of 2 do not"):
        resolve("unlikelihood")({"logits": torch.zeros(2, 4)}, batch)


@pytest.mark.parametrize("kwargs", [{"alpha": -1}, {"alpha": math.inf}, {"over_negatives": "max"}], ids=str)
def test_a_kwarg_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"^unlikelihood: {next(iter(kwargs))}: expected "):
        resolve("unlikelihood", **kwargs)
