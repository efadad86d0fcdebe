import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.regression import Drawn, drawn, huber
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

deltas = st.sampled_from([0.125, 1.0, 5.0, 100.0])


def loss_of(predictions: Any, targets: Any, mask: Any = None, **kwargs: Any) -> Tensor:
    batch = {"targets": torch.as_tensor(targets), "mask": None if mask is None else torch.as_tensor(mask)}
    return resolve_loss("huber", **kwargs)({"predictions": torch.as_tensor(predictions)}, batch)["loss"]


@pytest.mark.parametrize(
    ("predictions", "targets", "mask", "kwargs", "expected"),
    [
        pytest.param([0.5], [0.0], None, {}, 0.125, id="on the parabola"),
        pytest.param([0.0], [1.0], None, {}, 0.5, id="where they meet"),
        pytest.param([-3.0], [0.0], None, {}, 2.5, id="on the line"),
        pytest.param([3.0], [0.0], None, {"delta": 2.0}, 4.0, id="a wider parabola"),
        pytest.param([3.0], [0.0], None, {"delta": 3}, 4.5, id="an int"),
        pytest.param([0.5, 3.0], [0.0, 0.0], None, {}, 1.3125, id="mean"),
        pytest.param([0.5, 3.0], [0.0, 0.0], None, {"reduction": "sum"}, 2.625, id="sum"),
        pytest.param([0.5, 3.0], [0.0, 0.0], [False, True], {}, 2.5, id="one counts"),
        pytest.param([0.5, 3.0], [0.0, 0.0], [False, False], {}, 0.0, id="none counts"),
        pytest.param([], [], None, {}, 0.0, id="nothing"),
        pytest.param([1e30], [0.0], None, {"delta": 0.5}, 5e29, id="no overflow"),
    ],
)
def test_a_loss_by_hand(predictions: Any, targets: Any, mask: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(predictions, targets, mask, **kwargs).item() == pytest.approx(expected, rel=1e-6)


@given(drawn(), deltas, st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Drawn, delta: float, mode: Any) -> None:
    loss = loss_of(*it, delta=delta, reduction=mode)
    assert loss.item() == pytest.approx(reduced(it.rows(huber, delta=delta), mode), rel=1e-12)


@given(drawn(), deltas)
def test_the_gradient_is_the_difference_up_to_delta(it: Drawn, delta: float) -> None:
    loss_fn = resolve_loss("huber", delta=delta, reduction="sum")
    _, gradients = loss_and_gradients(loss_fn, *it.named("predictions"))
    expected = torch.where(it.mask, (it.predictions - it.targets).clamp(-delta, delta), 0.0)
    torch.testing.assert_close(gradients["predictions"], expected, rtol=1e-12, atol=0)


@given(drawn(), st.sampled_from(["none", "mean"]))
def test_what_does_not_count_has_no_effect(it: Drawn, mode: Any) -> None:
    loss_fn = resolve_loss("huber", reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, *it.named("predictions"))
    spoilt, spoilt_gradients = loss_and_gradients(loss_fn, *it.spoilt().named("predictions"))
    assert torch.equal(spoilt, loss)
    assert torch.equal(spoilt_gradients["predictions"], gradients["predictions"])


@given(drawn())
def test_its_ends_are_half_of_mse_and_l1(it: Drawn) -> None:
    pair = it.predictions, it.targets
    difference = it.predictions - it.targets
    wide, narrow = (loss_of(*pair, delta=delta, reduction="none") for delta in (1e3, 1e-9))
    torch.testing.assert_close(2 * wide, difference.square())
    torch.testing.assert_close(narrow / 1e-9, difference.abs(), rtol=0, atol=1e-9)


@given(drawn(), deltas)
def test_torch_has_the_same(it: Drawn, delta: float) -> None:
    pair = it.predictions, it.targets
    ours = loss_of(*pair, delta=delta, reduction="none")
    torch.testing.assert_close(ours, torch.nn.functional.huber_loss(*pair, reduction="none", delta=delta))
    smooth = torch.nn.functional.smooth_l1_loss(*pair, reduction="none", beta=delta)
    torch.testing.assert_close(ours / delta, smooth)


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan, math.inf, True, "1", None, torch.tensor(1.0)], ids=str)
def test_a_delta_out_of_range_is_refused(delta: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^huber: delta: "):
        resolve_loss("huber", delta=delta)


def test_nothing_is_broadcast() -> None:
    with pytest.raises(LossInputError, match=r"^huber: 'mask' must be bool\[\*shape\]"):
        loss_of([[1.0], [2.0]], [[1.0], [2.0]], [True, True])
