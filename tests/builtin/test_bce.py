import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.regression import Drawn, bce, drawn
from references.slopes import slopes
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

LN2, LN3 = math.log(2), math.log(3)
kwargs_of_bce = st.fixed_dictionaries(
    {"pos_weight": st.sampled_from([0.25, 1.0, 3.0]), "label_smoothing": st.sampled_from([0.0, 0.1, 1.0])}
)


def call(logits: Any, targets: Any, mask: Any = None, **kwargs: Any) -> Any:
    batch = {"targets": torch.as_tensor(targets), "mask": None if mask is None else torch.as_tensor(mask)}
    return resolve_loss("bce", **kwargs)({"logits": torch.as_tensor(logits)}, batch)


def loss_of(logits: Any, targets: Any, mask: Any = None, **kwargs: Any) -> Tensor:
    loss: Tensor = call(logits, targets, mask, **kwargs)["loss"]
    return loss


@pytest.mark.parametrize(
    ("logits", "targets", "mask", "kwargs", "expected"),
    [
        pytest.param([0.0], [1.0], None, {}, LN2, id="undecided"),
        pytest.param([LN3], [1.0], None, {}, math.log(4 / 3), id="a likely yes"),
        pytest.param([LN3], [0.0], None, {}, math.log(4), id="a no that was thought unlikely"),
        pytest.param([LN3], [0.5], None, {}, math.log(16 / 3) / 2, id="half and half"),
        pytest.param([LN3], [1.0], None, {"label_smoothing": 1.0}, math.log(16 / 3) / 2, id="all smoothed"),
        pytest.param([LN3], [1.0], None, {"pos_weight": 3.0}, 3 * math.log(4 / 3), id="a heavy yes"),
        pytest.param([LN3], [0.0], None, {"pos_weight": 3.0}, math.log(4), id="a no weighs 1"),
        pytest.param([0.0, 0.0], [1.0, 0.0], None, {"pos_weight": 3}, 2 * LN2, id="mean over elements"),
        pytest.param([0.0, LN3], [1.0, 0.0], None, {"reduction": "sum"}, math.log(8), id="sum"),
        pytest.param([0.0, LN3], [1.0, 0.0], [True, False], {}, LN2, id="one counts"),
        pytest.param([0.0], [1.0], [False], {}, 0.0, id="none counts"),
        pytest.param([[0.0, 0.0]], [[1.0, 0.0]], None, {}, LN2, id="several questions of one sample"),
        pytest.param([], [], None, {}, 0.0, id="nothing"),
        pytest.param([1e4], [0.0], None, {}, 1e4, id="far wrong"),
        pytest.param([-1e4], [0.0], None, {"pos_weight": 2.0}, 0.0, id="far right"),
    ],
)
def test_a_loss_by_hand(logits: Any, targets: Any, mask: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(logits, targets, mask, **kwargs).item() == pytest.approx(expected, rel=1e-6)


@given(drawn(least=0, most=1), kwargs_of_bce, st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Drawn, kwargs: Any, mode: Any) -> None:
    loss_fn = resolve_loss("bce", reduction=mode, **kwargs)
    loss, gradients = loss_and_gradients(loss_fn, *it.named("logits"))
    assert loss.item() == pytest.approx(reduced(it.rows(bce, **kwargs), mode), rel=1e-10)
    expected = slopes(lambda at: reduced(it.rows(bce, at, **kwargs), mode), it.predictions)
    torch.testing.assert_close(gradients["logits"], expected, rtol=1e-6, atol=1e-8)


@given(drawn(least=0, most=1), st.sampled_from(["none", "mean"]))
def test_what_does_not_count_has_no_effect(it: Drawn, mode: Any) -> None:
    loss_fn = resolve_loss("bce", reduction=mode, pos_weight=2.0, label_smoothing=0.1)
    loss, gradients = loss_and_gradients(loss_fn, *it.named("logits"))
    spoilt, spoilt_gradients = loss_and_gradients(loss_fn, *it.spoilt().named("logits"))
    assert torch.equal(spoilt, loss)
    assert torch.equal(spoilt_gradients["logits"], gradients["logits"])


@given(drawn(least=0, most=1), st.sampled_from([0.25, 1.0, 3.0]), st.sampled_from(["none", "sum"]))
def test_torch_has_the_same(it: Drawn, pos_weight: float, mode: Any) -> None:
    weight = torch.tensor(pos_weight, dtype=torch.float64)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        it.predictions, it.targets, pos_weight=weight, reduction=mode
    )
    ours = loss_of(it.predictions, it.targets, pos_weight=pos_weight, reduction=mode)
    torch.testing.assert_close(ours, theirs)


@given(drawn(least=0, most=1))
def test_the_gradient_is_probability_minus_target(it: Drawn) -> None:
    _, gradients = loss_and_gradients(resolve_loss("bce", reduction="sum"), *it.named("logits"))
    expected = torch.where(it.mask, 1 / (1 + torch.exp(-it.predictions)) - it.targets, 0.0)
    torch.testing.assert_close(gradients["logits"], expected)


def test_accuracy_is_the_share_on_the_right_side() -> None:
    logits, targets = [2.0, -1.0, 0.0, 3.0, 1.0], [1.0, 0.2, 0.0, 0.4, 1.0]
    assert call(logits, targets)["metrics"]["accuracy"] == pytest.approx(4 / 5)
    assert call(logits, targets, [True, True, False, True, False])["metrics"]["accuracy"] == pytest.approx(2 / 3)
    assert call(logits, targets, metrics=False)["metrics"] == {}


def test_integer_targets_are_refused() -> None:
    with pytest.raises(LossInputError, match=r"^bce: 'targets' .*int64"):
        loss_of([1.0], [1])


@pytest.mark.parametrize(
    ("kwarg", "value"),
    [
        *(("pos_weight", value) for value in (0.0, -1.0, math.nan, math.inf, True, "1", None, [1.0])),
        *(("label_smoothing", value) for value in (-0.1, 1.1, math.nan, True, None)),
    ],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=f"^bce: {kwarg}: "):
        resolve_loss("bce", **{kwarg: value})
