import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients, reduced
from references.regression import Classified, classified
from references.slopes import slopes
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")

LN3 = math.log(3)
smoothings = st.sampled_from([0.0, 0.1, 1.0])


def call(logits: Any, labels: Any, **kwargs: Any) -> Any:
    outputs = {"logits": torch.as_tensor(logits)}
    return resolve_loss("cross_entropy", **kwargs)(outputs, {"labels": torch.as_tensor(labels)})


def loss_of(logits: Any, labels: Any, **kwargs: Any) -> Tensor:
    loss: Tensor = call(logits, labels, **kwargs)["loss"]
    return loss


@pytest.mark.parametrize(
    ("logits", "labels", "kwargs", "expected"),
    [
        pytest.param([[0.0, 0.0, 0.0, 0.0]], [2], {}, math.log(4), id="uniform"),
        pytest.param([[0.0, LN3]], [1], {}, math.log(4 / 3), id="the likely one"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, 1], {}, math.log(16 / 3) / 2, id="mean"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, 1], {"reduction": "sum"}, math.log(16 / 3), id="sum"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, -100], {}, math.log(4), id="one ignored"),
        pytest.param([[0.0, LN3], [0.0, LN3]], [0, 1], {"ignore_index": 1}, math.log(4), id="another one ignored"),
        pytest.param([[0.0, LN3]], [-100], {}, 0.0, id="all ignored"),
        pytest.param([[0.0, LN3]], [0], {"label_smoothing": 0.5}, math.log(4) - 0.25 * LN3, id="half smoothed"),
        pytest.param(
            [[0.0, LN3], [0.0, LN3]],
            [0, 1],
            {"class_weights": [3.0, 1.0]},
            (3 * math.log(4) + math.log(4 / 3)) / 4,
            id="the mean divides by the weights",
        ),
        pytest.param(
            [[0.0, LN3], [0.0, LN3]],
            [0, 1],
            {"class_weights": [3, 1], "reduction": "sum"},
            3 * math.log(4) + math.log(4 / 3),
            id="the sum does not",
        ),
        pytest.param([[0.0, LN3]], [0], {"class_weights": [7.0, 1.0]}, math.log(4), id="one sample, any weight"),
        pytest.param([[0.0, LN3]], [0], {"class_weights": [0.0, 1.0]}, 0.0, id="a label without weight"),
        pytest.param([[0.0]], [0], {}, 0.0, id="one class"),
    ],
)
def test_a_loss_by_hand(logits: Any, labels: Any, kwargs: Any, expected: float) -> None:
    logits = torch.tensor(logits, dtype=torch.float64)
    assert loss_of(logits, labels, **kwargs).item() == pytest.approx(expected, rel=1e-14)


@given(classified(), st.booleans(), smoothings, st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(it: Classified, weighted: bool, smoothing: float, mode: Any) -> None:
    kwargs = {"class_weights": it.class_weights} if weighted else {}
    loss_fn = resolve_loss("cross_entropy", reduction=mode, label_smoothing=smoothing, **kwargs)
    loss, gradients = loss_and_gradients(loss_fn, {"logits": it.logits}, {"labels": it.labels})

    def formula(logits: list[float]) -> float:
        return reduced(it.rows(logits, weighted=weighted, label_smoothing=smoothing), mode)

    assert loss.item() == pytest.approx(formula(it.logits.reshape(-1).tolist()), rel=1e-10, abs=1e-12)
    torch.testing.assert_close(gradients["logits"], slopes(formula, it.logits), rtol=1e-6, atol=1e-8)


@given(classified(), st.booleans(), smoothings, st.sampled_from(["none", "sum", "mean"]))
def test_torch_has_the_same(it: Classified, weighted: bool, smoothing: float, mode: Any) -> None:
    assume(mode != "mean" or (it.labels != -100).any())  # NaN there
    weights = [weight or 0.5 for weight in it.class_weights] if weighted else None
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    leaf = it.logits.clone().requires_grad_()
    theirs = torch.nn.functional.cross_entropy(
        leaf, it.labels, tensor, ignore_index=-100, label_smoothing=smoothing, reduction=mode
    )
    (gradient,) = torch.autograd.grad(theirs.sum(), leaf)
    loss_fn = resolve_loss("cross_entropy", class_weights=weights, label_smoothing=smoothing, reduction=mode)
    ours, gradients = loss_and_gradients(loss_fn, {"logits": it.logits}, {"labels": it.labels})
    torch.testing.assert_close(ours, theirs.detach())
    torch.testing.assert_close(gradients["logits"], gradient)


@given(classified(), smoothings)
def test_a_common_factor_of_the_weights_cancels_in_the_mean(it: Classified, smoothing: float) -> None:
    kwargs: Any = {"label_smoothing": smoothing}
    one = loss_of(it.logits, it.labels, class_weights=it.class_weights, **kwargs)
    many = loss_of(it.logits, it.labels, class_weights=[64 * weight for weight in it.class_weights], **kwargs)
    torch.testing.assert_close(one, many)


@pytest.mark.parametrize("weights", [None, [0.5, 0.0, 2.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize("mode", ["none", "sum", "mean"])
def test_what_does_not_count_has_no_effect(weights: Any, mode: Any) -> None:
    logits = torch.tensor([[0.5, 1.0, -1.0], [torch.nan] * 3, [0.0, 2.0, 0.0]])
    labels = torch.tensor([0, -100, 2])
    loss_fn = resolve_loss("cross_entropy", class_weights=weights, reduction=mode, label_smoothing=0.1)
    loss, gradients = loss_and_gradients(loss_fn, {"logits": logits}, {"labels": labels})
    rest, rest_gradients = loss_and_gradients(loss_fn, {"logits": logits[::2]}, {"labels": labels[::2]})
    torch.testing.assert_close(loss[::2] if mode == "none" else loss, rest)
    torch.testing.assert_close(gradients["logits"][::2], rest_gradients["logits"])
    assert gradients["logits"][1].tolist() == [0.0, 0.0, 0.0]


def test_16_bit_logits_are_computed_in_float32() -> None:
    logits = torch.tensor([[0.0, 10.0], [3.0, 1.0]], dtype=torch.bfloat16)
    loss_fn = resolve_loss("cross_entropy", class_weights=[1, 3])
    loss, gradients = loss_and_gradients(loss_fn, {"logits": logits}, {"labels": torch.tensor([0, 1])})
    expected = loss_of(logits.double(), [0, 1], class_weights=[1, 3])
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert gradients["logits"].dtype is torch.bfloat16


def test_num_items_is_what_counts() -> None:
    logits, labels = torch.zeros(4, 3), [0, -100, 2, 1]
    assert call(logits, labels)["metrics"]["num_items"] == 3
    assert call(logits, labels, class_weights=[1.0, 1.0, 0.0])["metrics"]["num_items"] == 2
    assert call(logits, labels, metrics=False)["metrics"] == {}


@pytest.mark.parametrize("weights", [None, [1.0, 2.0]], ids=["plain", "weighted"])
@pytest.mark.parametrize("label", [2, -1])
def test_a_label_out_of_range_is_refused(label: int, weights: Any) -> None:
    with pytest.raises(LossInputError, match=r"^cross_entropy: 'labels' must lie in \[0, 2\).*1 of 2 do not"):
        loss_of(torch.zeros(2, 2), [label, 0], class_weights=weights)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0]], ids=["fewer", "more"])
def test_weights_of_more_or_fewer_classes_are_refused(weights: list[float]) -> None:
    message = rf"^cross_entropy: 'logits' must have one class per class weight, {len(weights)}; got classes=2"
    with pytest.raises(LossInputError, match=message):
        loss_of(torch.zeros(1, 2), [0], class_weights=weights)


def test_logits_of_tokens_are_refused() -> None:
    with pytest.raises(LossInputError, match=r"^cross_entropy: 'logits' must be float\[batch classes\]"):
        loss_of(torch.zeros(1, 2, 3), [[0, 1]])


@pytest.mark.parametrize(
    ("kwarg", "value"),
    [
        *(("class_weights", value) for value in ([], [0.0, 0.0], [-1.0, 1.0], [math.inf, 1.0], [True, 1.0], 1.0, "1")),
        *(("class_weights", value) for value in ({1.0, 2.0}, torch.ones(2), {0: 1.0})),
        *(("label_smoothing", value) for value in (-0.1, 1.1, math.nan, True)),
        ("ignore_index", 0.5),
    ],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^cross_entropy: {kwarg}"):
        resolve_loss("cross_entropy", **{kwarg: value})


def test_class_weights_survive_a_config() -> None:
    loss_fn = resolve_loss({"type": "cross_entropy", "kwargs": {"class_weights": [1, 2.5]}})
    assert loss_fn.kwargs["class_weights"] == (1.0, 2.5)
    assert resolve_loss(loss_fn.to_config()) == loss_fn
