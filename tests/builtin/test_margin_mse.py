from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

NAMES = ("positive_scores", "negative_scores", "teacher_positive_scores", "teacher_negative_scores")
Scores = tuple[Tensor, Tensor, Tensor, Tensor]


@st.composite
def all_scores(draw: st.DrawFn) -> Scores:
    shape = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)))
    return draw(tensors(shape)), draw(tensors(shape)), draw(tensors(shape)), draw(tensors(shape))


def call(*scores: Any, **kwargs: Any) -> Any:
    named = {name: torch.as_tensor(side) for name, side in zip(NAMES, scores, strict=True)}
    return resolve_loss("margin_mse", **kwargs)(named, {})


@pytest.mark.parametrize(
    ("scores", "kwargs", "expected"),
    [
        pytest.param(([3.0], [1.0], [9.0], [4.0]), {}, 9.0, id="too near"),
        pytest.param(([9.0], [1.0], [9.0], [4.0]), {}, 9.0, id="too far apart"),
        pytest.param(([13.0], [8.0], [9.0], [4.0]), {}, 0.0, id="the same margin elsewhere"),
        pytest.param(([1.0], [3.0], [4.0], [9.0]), {}, 9.0, id="a teacher that prefers the other"),
        pytest.param(([3.0, 1.0], [1.0, 0.0], [9.0, 2.0], [4.0, 0.0]), {}, 5.0, id="mean"),
        pytest.param(([3.0, 1.0], [1.0, 0.0], [9.0, 2.0], [4.0, 0.0]), {"reduction": "sum"}, 10.0, id="sum"),
        pytest.param(([[3.0, 1.0]], [[1.0, 0.0]], [[9.0, 2.0]], [[4.0, 0.0]]), {}, 5.0, id="two negatives"),
        pytest.param(([], [], [], []), {}, 0.0, id="no pair"),
    ],
)
def test_a_loss_by_hand(scores: Any, kwargs: Any, expected: float) -> None:
    assert call(*scores, **kwargs)["loss"] == expected


@given(all_scores(), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(scores: Scores, mode: Any) -> None:
    student, teacher = (dict(zip(NAMES[at], scores[at], strict=True)) for at in (slice(0, 2), slice(2, 4)))
    loss, gradients = loss_and_gradients(resolve_loss("margin_mse", reduction=mode), student, teacher)
    columns = zip(*(side.reshape(-1).tolist() for side in scores), strict=True)
    values = [((p - n) - (tp - tn)) ** 2 for p, n, tp, tn in columns]
    assert loss.item() == pytest.approx(reduced(elements(values), mode), rel=1e-12)
    p, n, tp, tn = scores
    expected = 2 * (p - n - tp + tn) / (max(p.numel(), 1) if mode == "mean" else 1)
    torch.testing.assert_close(gradients["positive_scores"], expected)
    torch.testing.assert_close(gradients["negative_scores"], -expected)


@given(all_scores(), st.floats(-50, 50))
def test_only_margins_matter(scores: Scores, constant: float) -> None:
    p, n, tp, tn = scores
    moved = call(p + constant, n + constant, tp - constant, tn - constant)["loss"]
    torch.testing.assert_close(moved, call(*scores)["loss"])


def test_the_teacher_gets_no_gradient() -> None:
    scores = {name: torch.ones(2, requires_grad=True) for name in NAMES}
    torch.autograd.backward(resolve_loss("margin_mse")(scores, {})["loss"])
    assert [scores[name].grad is None for name in NAMES] == [False, False, True, True]


def test_accuracy_is_the_share_ordered_as_the_teacher_does() -> None:
    zeros, teacher = [0.0] * 5, [1.0, -2.0, 0.5, 0.0, -1.0]
    metrics = call([3.0, -1.0, -1.0, 0.0, 0.0], zeros, teacher, zeros)["metrics"]
    assert {name: float(value) for name, value in metrics.items()} == {"accuracy": pytest.approx(3 / 5)}
    assert call(zeros, zeros, teacher, zeros, metrics=False)["metrics"] == {}


def test_a_shape_that_differs_is_refused() -> None:
    with pytest.raises(LossInputError, match=r"^margin_mse: 'teacher_positive_scores' must be float\[\*pairs\]"):
        call([1.0], [1.0], [[1.0]], [[1.0]])


def test_a_margin_is_no_kwarg() -> None:
    with pytest.raises(LossConfigError, match=r"^margin_mse: margin: unknown argument"):
        resolve_loss("margin_mse", margin=1.0)  # type: ignore[arg-type]
