import math
from typing import Any

import pytest
import torch
from hypothesis import given

from reference import loss_and_gradients
from references.tokens import (
    LN3,
    Weighted,
    assert_nothing_where_nothing_counts,
    assert_reduced,
    assert_slopes,
    dft,
    resolve,
    softmax,
    weighted_tokens,
)
from tensafe.training.losses import LossConfigError, LossInputError

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize(
    ("logits", "labels", "kwargs", "expected"),
    [
        pytest.param([[0.0, 0.0]], [1], {}, 0.5 * math.log(2), id="uniform"),
        pytest.param([[0.0, LN3]], [1], {}, 0.75 * math.log(4 / 3), id="the likely one"),
        pytest.param([[0.0, LN3]], [0], {}, 0.25 * math.log(4), id="the unlikely one"),
        pytest.param([[0.0, LN3], [0.0, 0.0]], [-100, 0], {}, 0.5 * math.log(2), id="one ignored"),
        pytest.param([[0.0]], [0], {}, 0.0, id="one class"),
        pytest.param([[[0.0, LN3], [5.0, 1.0]]], [[9, 0]], {}, 0.25 * math.log(4), id="shifted"),
        pytest.param([[0.0, 1e4]], [0], {}, 0.0, id="hopeless"),
    ],
)
def test_a_loss_by_hand(logits: Any, labels: Any, kwargs: Any, expected: float) -> None:
    outputs = {"logits": torch.tensor(logits, dtype=torch.float64)}
    found = resolve("dft", **kwargs)(outputs, {"labels": torch.tensor(labels)})["loss"]
    assert found.item() == pytest.approx(expected, rel=1e-14, abs=1e-15)


@given(weighted_tokens())
def test_every_reduction_is_that_of_the_formula(drawn: Weighted) -> None:
    assert_reduced(resolve("dft"), {"logits": drawn.logits}, drawn.batch, drawn.rows(dft))


@given(weighted_tokens())
def test_the_gradient_lowers_minus_the_probability(drawn: Weighted) -> None:
    assert_slopes(resolve("dft"), drawn, lambda scores, label: -softmax(scores)[label])


def test_what_is_ignored_may_hold_anything() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert_nothing_where_nothing_counts("dft", {"logits": logits}, {"labels": torch.tensor([[0, -100, 3]] * 2)})


def test_it_is_cross_entropy_with_the_probabilities_as_weights() -> None:
    logits, labels = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)), torch.arange(10).view(2, 5) % 7
    p = logits.softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    _, found = loss_and_gradients(resolve("dft", shift=False, reduction="sum"), {"logits": logits}, {"labels": labels})
    _, expected = loss_and_gradients(
        resolve("token_ce", shift=False, reduction="sum"), {"logits": logits}, {"labels": labels, "token_weights": p}
    )
    torch.testing.assert_close(found, expected)


def test_metrics() -> None:
    outputs = {"logits": torch.tensor([[0.0, LN3], [0.0, 0.0], [9.0, 0.0]])}
    metrics = resolve("dft")(outputs, {"labels": torch.tensor([0, 1, -100])})["metrics"]
    assert list(metrics) == ["num_tokens", "nll", "probability"]
    assert metrics["num_tokens"] == 2
    assert float(metrics["nll"]) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert float(metrics["probability"]) == pytest.approx((0.25 + 0.5) / 2)


def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(LossInputError, match=r"^dft: 'labels' must lie in \[0, 2\)"):
        resolve("dft")({"logits": torch.zeros(1, 2)}, {"labels": torch.tensor([2])})


def test_it_has_no_label_smoothing() -> None:
    with pytest.raises(LossConfigError, match=r"^dft: label_smoothing: unknown argument of dft"):
        resolve("dft", label_smoothing=0.1)
