import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.regression import Drawn, drawn, l1
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


def loss_of(predictions: Any, targets: Any, mask: Any = None, **kwargs: Any) -> Tensor:
    batch = {"targets": torch.as_tensor(targets), "mask": None if mask is None else torch.as_tensor(mask)}
    return resolve_loss("l1", **kwargs)({"predictions": torch.as_tensor(predictions)}, batch)["loss"]


@pytest.mark.parametrize(
    ("predictions", "targets", "mask", "kwargs", "expected"),
    [
        pytest.param([1.0, 4.0], [2.0, 2.0], None, {}, 1.5, id="mean"),
        pytest.param([1.0, 4.0], [2.0, 2.0], None, {"reduction": "sum"}, 3.0, id="sum"),
        pytest.param([1.0, 4.0], [2.0, 2.0], [False, True], {}, 2.0, id="one counts"),
        pytest.param([1.0, 4.0], [2.0, 2.0], [False, False], {}, 0.0, id="none counts"),
        pytest.param([[1.0], [4.0]], [[2.0], [2.0]], None, {}, 1.5, id="two axes"),
        pytest.param(1.0, 4.0, None, {}, 3.0, id="no axis"),
        pytest.param([], [], None, {}, 0.0, id="nothing"),
    ],
)
def test_a_loss_by_hand(predictions: Any, targets: Any, mask: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(predictions, targets, mask, **kwargs) == expected


@given(drawn(), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Drawn, mode: Any) -> None:
    loss = loss_of(*it, reduction=mode)
    assert loss.item() == pytest.approx(reduced(it.rows(l1), mode), rel=1e-12)


@given(drawn())
def test_the_gradient_is_the_sign_of_what_counts(it: Drawn) -> None:
    _, gradients = loss_and_gradients(resolve_loss("l1", reduction="sum"), *it.named("predictions"))
    expected = torch.where(it.mask, torch.sign(it.predictions - it.targets), 0.0)
    assert torch.equal(gradients["predictions"], expected)


@given(drawn(), st.sampled_from(["none", "mean"]))
def test_what_does_not_count_has_no_effect(it: Drawn, mode: Any) -> None:
    loss_fn = resolve_loss("l1", reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, *it.named("predictions"))
    spoilt, spoilt_gradients = loss_and_gradients(loss_fn, *it.spoilt().named("predictions"))
    assert torch.equal(spoilt, loss)
    assert torch.equal(spoilt_gradients["predictions"], gradients["predictions"])


@given(drawn())
def test_torch_has_the_same(it: Drawn) -> None:
    expected = torch.nn.functional.l1_loss(it.predictions, it.targets, reduction="none")
    torch.testing.assert_close(loss_of(it.predictions, it.targets, reduction="none"), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [(math.inf, 0.0, math.inf), (math.inf, math.inf, math.nan), (math.nan, 1.0, math.nan), (3e38, -3e38, math.inf)],
)
def test_what_is_not_finite_is_passed_on(prediction: float, target: float, expected: float) -> None:
    assert loss_of([prediction], [target]).item() == pytest.approx(expected, nan_ok=True)


def test_nothing_is_broadcast() -> None:
    with pytest.raises(LossInputError, match=r"^l1: 'targets' must be float\[\*shape\]"):
        loss_of([[1.0], [2.0]], [1.0, 2.0])


@pytest.mark.parametrize("kwargs", [{"reduction": "sequence_mean"}, {"delta": 1.0}], ids=str)
def test_a_wrong_kwarg_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(LossConfigError, match=f"{next(iter(kwargs))}: "):
        resolve_loss("l1", **kwargs)
