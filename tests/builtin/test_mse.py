import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, mse, reduced
from references.regression import Drawn, drawn
from strategies import twins
from tensafe.training.losses import LossConfigError, resolve_loss

Pair = tuple[Tensor, Tensor]


def loss_of(predictions: Any, targets: Any, **kwargs: Any) -> Tensor:
    outputs, batch = {"predictions": torch.as_tensor(predictions)}, {"targets": torch.as_tensor(targets)}
    return resolve_loss("mse", **kwargs)(outputs, batch)["loss"]


@pytest.mark.parametrize(
    ("predictions", "targets", "kwargs", "expected"),
    [
        pytest.param([1.0, 4.0], [1.0, 2.0], {}, 2.0, id="mean"),
        pytest.param([1.0, 4.0], [1.0, 2.0], {"reduction": "sum"}, 4.0, id="sum"),
        pytest.param([[1.0], [4.0]], [[1.0], [2.0]], {}, 2.0, id="two axes"),
        pytest.param(1.0, 4.0, {}, 9.0, id="no axis"),
        pytest.param([], [], {}, 0.0, id="nothing"),
        pytest.param([[]], [[]], {"reduction": "sum"}, 0.0, id="nothing in a row"),
    ],
)
def test_a_loss_by_hand(predictions: Any, targets: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(predictions, targets, **kwargs) == expected


@given(twins(), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(pair: Pair, mode: Any) -> None:
    assert loss_of(*pair, reduction=mode).item() == pytest.approx(reduced(elements(mse(*pair)), mode), rel=1e-12)


@given(twins())
def test_none_gives_one_value_per_element(pair: Pair) -> None:
    loss = loss_of(*pair, reduction="none")
    torch.testing.assert_close(loss, torch.tensor(mse(*pair), dtype=torch.float64).reshape(pair[0].shape))


@given(twins())
def test_the_gradient_is_twice_the_difference(pair: Pair) -> None:
    predictions, targets = pair
    _, gradients = loss_and_gradients(
        resolve_loss("mse", reduction="sum"), {"predictions": predictions}, {"targets": targets}
    )
    torch.testing.assert_close(gradients["predictions"], 2 * (predictions - targets))


@given(twins())
def test_sides_may_be_swapped_and_a_perfect_prediction_costs_nothing(pair: Pair) -> None:
    predictions, targets = pair
    assert torch.equal(loss_of(predictions, targets), loss_of(targets, predictions))
    assert loss_of(targets, targets) == 0.0


def test_targets_may_need_a_gradient_too() -> None:
    outputs = {"predictions": torch.tensor([1.0, 4.0]), "targets": torch.tensor([2.0, 2.0])}
    _, gradients = loss_and_gradients(resolve_loss("mse"), outputs)
    assert gradients["predictions"].tolist() == [-1.0, 2.0]
    assert gradients["targets"].tolist() == [1.0, -2.0]


def test_the_square_of_a_16_bit_difference_does_not_overflow() -> None:
    prediction, target = torch.tensor([300.0], dtype=torch.float16), torch.tensor([-300.0], dtype=torch.float16)
    loss, gradients = loss_and_gradients(resolve_loss("mse"), {"predictions": prediction}, {"targets": target})
    assert loss.item() == 360_000.0
    assert gradients["predictions"].dtype is torch.float16
    assert gradients["predictions"].item() == 1200.0


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [(math.inf, 0.0, math.inf), (math.inf, math.inf, math.nan), (math.nan, 1.0, math.nan), (3e38, -3e38, math.inf)],
)
def test_what_is_not_finite_is_passed_on(prediction: float, target: float, expected: float) -> None:
    assert loss_of([prediction], [target]).item() == pytest.approx(expected, nan_ok=True)


def test_it_has_no_metrics() -> None:
    assert resolve_loss("mse")({"predictions": torch.ones(2)}, {"targets": torch.ones(2)})["metrics"] == {}


@pytest.mark.parametrize("kwargs", [{"reduction": "sequence_mean"}, {"reduction": None}, {"margin": 1.0}], ids=str)
def test_a_wrong_kwarg_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"{next(iter(kwargs))}: "):
        resolve_loss("mse", **kwargs)


@pytest.mark.parametrize(("mask", "expected"), [([True, False], 9.0), ([True, True], 5.0), ([False, False], 0.0)])
def test_only_what_the_mask_counts_counts(mask: list[bool], expected: float) -> None:
    batch = {"targets": torch.tensor([1.0, 2.0]), "mask": torch.tensor(mask)}
    loss, gradients = loss_and_gradients(resolve_loss("mse"), {"predictions": torch.tensor([4.0, 3.0])}, batch)
    assert loss == expected
    assert gradients["predictions"].tolist() == [6.0 * mask[0] / max(sum(mask), 1), 2.0 * mask[1] / max(sum(mask), 1)]


@given(drawn(), st.sampled_from(["none", "mean"]))
def test_what_does_not_count_has_no_effect(it: Drawn, mode: Any) -> None:
    loss_fn = resolve_loss("mse", reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, *it.named("predictions"))
    spoilt, spoilt_gradients = loss_and_gradients(loss_fn, *it.spoilt().named("predictions"))
    assert torch.equal(spoilt, loss)
    assert torch.equal(spoilt_gradients["predictions"], gradients["predictions"])
