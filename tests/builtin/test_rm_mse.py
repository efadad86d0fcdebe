import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.regression import Drawn, drawn
from tensafe.training.losses import LossConfigError, resolve_loss


def call(rewards: Any, targets: Any, mask: Any = None, **kwargs: Any) -> Any:
    batch = {"targets": torch.as_tensor(targets), "mask": None if mask is None else torch.as_tensor(mask)}
    return resolve_loss("rm_mse", **kwargs)({"rewards": torch.as_tensor(rewards)}, batch)


def loss_of(rewards: Any, targets: Any, mask: Any = None, **kwargs: Any) -> Tensor:
    loss: Tensor = call(rewards, targets, mask, **kwargs)["loss"]
    return loss


@pytest.mark.parametrize(
    ("rewards", "targets", "mask", "kwargs", "expected"),
    [
        pytest.param([1.0, 4.0], [3.0, 5.0], None, {}, 2.5, id="mean"),
        pytest.param([1.0, 4.0], [3.0, 5.0], None, {"reduction": "sum"}, 5.0, id="sum"),
        pytest.param([1.0, 4.0], [3.0, -100.0], None, {"ignore_value": -100}, 4.0, id="one is missing"),
        pytest.param([1.0, 0.0], [3.0, -100.0], None, {}, 5002.0, id="-100 is a number like any other"),
        pytest.param([1.0], [-100.0], None, {"ignore_value": -100.0}, 0.0, id="all are missing"),
        pytest.param([1.0, 4.0], [3.0, 5.0], [True, False], {}, 4.0, id="one counts"),
        pytest.param([1.0, 4.0, 0.0], [0.0, 5.0, 3.0], [True, False, True], {"ignore_value": 0}, 9.0, id="both"),
        pytest.param([[1.0, 4.0]], [[3.0, -1.0]], None, {"ignore_value": -1}, 4.0, id="by attribute"),
        pytest.param([], [], None, {}, 0.0, id="nothing"),
    ],
)
def test_a_loss_by_hand(rewards: Any, targets: Any, mask: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(rewards, targets, mask, **kwargs) == expected


@given(drawn(), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Drawn, mode: Any) -> None:
    loss, gradients = loss_and_gradients(resolve_loss("rm_mse", reduction=mode), *it.named("rewards"))
    assert loss.item() == pytest.approx(reduced(it.rows(lambda r, y: (r - y) ** 2), mode), rel=1e-12)
    scale = 2 / max(int(it.mask.sum()), 1) if mode == "mean" else 2
    expected = torch.where(it.mask, scale * (it.predictions - it.targets), 0.0)
    torch.testing.assert_close(gradients["rewards"], expected)


@given(drawn(), st.sampled_from(["none", "mean"]))
def test_what_does_not_count_has_no_effect(it: Drawn, mode: Any) -> None:
    loss_fn = resolve_loss("rm_mse", reduction=mode)
    loss, gradients = loss_and_gradients(loss_fn, *it.named("rewards"))
    spoilt, spoilt_gradients = loss_and_gradients(loss_fn, *it.spoilt().named("rewards"))
    assert torch.equal(spoilt, loss)
    assert torch.equal(spoilt_gradients["rewards"], gradients["rewards"])


@given(drawn(), st.sampled_from(["none", "sum", "mean"]))
def test_a_missing_annotation_is_one_that_is_masked(it: Drawn, mode: Any) -> None:
    rewards = torch.where(it.mask, it.predictions, torch.nan)
    outputs, batch = {"rewards": rewards}, {"targets": torch.where(it.mask, it.targets, -100.0)}
    loss, gradients = loss_and_gradients(resolve_loss("rm_mse", ignore_value=-100, reduction=mode), outputs, batch)
    masked, masked_gradients = loss_and_gradients(resolve_loss("rm_mse", reduction=mode), *it.named("rewards"))
    assert torch.equal(loss, masked)
    assert torch.equal(gradients["rewards"], masked_gradients["rewards"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_value_to_ignore_is_found_in_any_dtype(dtype: torch.dtype) -> None:
    rewards, targets = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([0.0, -100.0], dtype=dtype)
    assert loss_of(rewards, targets, ignore_value=-100) == 1.0


def test_the_mean_reward_is_that_of_what_counts() -> None:
    assert call([1.0, 2.0, 6.0], [0.0, -1.0, 0.0], ignore_value=-1)["metrics"]["reward"] == 3.5
    assert call([1.0, 2.0], [0.0, 0.0], metrics=False)["metrics"] == {}


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "-100"], ids=str)
def test_no_number_to_ignore_is_refused(value: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^rm_mse: ignore_value: "):
        resolve_loss("rm_mse", ignore_value=value)
