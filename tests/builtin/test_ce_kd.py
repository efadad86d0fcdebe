import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import cross_entropy, loss_and_gradients
from references.distillation import (
    HALVES,
    IGNORED,
    Pair,
    check_rows,
    check_slopes,
    common,
    formula_of,
    pairs,
    reductions,
    resolve,
    rows_of,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")

FORWARD = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)
COLD = 0.1 * math.log(1 / 5) + 0.9 * math.log(9 / 5)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({}, (math.log(2) + FORWARD) / 2, id="half"),
        pytest.param({"alpha": 0.25}, 0.75 * math.log(2) + 0.25 * FORWARD, id="a quarter"),
        pytest.param({"alpha": 0}, math.log(2), id="labels"),
        pytest.param({"alpha": 1}, FORWARD, id="teacher"),
        pytest.param({"temperature": 0.5}, (math.log(2) + COLD) / 2, id="cold"),
        pytest.param(
            {"temperature": 0.5, "scale_tau2": True}, (math.log(2) + COLD / 4) / 2, id="cold, times the square"
        ),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    loss = resolve("ce_kd", **kwargs)(HALVES, {"labels": torch.tensor([1])})["loss"]
    assert loss.item() == pytest.approx(expected, rel=1e-13)


kwargs_of = st.tuples(common, st.sampled_from([0.0, 0.3, 1.0])).map(lambda both: {**both[0], "alpha": both[1]})
labelled = pairs(least=1).filter(lambda pair: pair.labels is not None)


def value(pair: Pair, at: tuple[int, ...], scores: Any, shift: bool, alpha: float, **kwargs: Any) -> float:
    assert pair.labels is not None
    label = int(pair.labels[at[0], at[1] + shift])
    soft = formula_of("forward_kl", **kwargs)(scores, pair.teacher[at].tolist())
    return (1 - alpha) * cross_entropy(scores, label) + alpha * soft


@given(labelled, st.booleans(), reductions, kwargs_of)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    rows = rows_of(lambda at: value(pair, at, pair.logits[at].tolist(), shift, **kwargs), pair.counts(shift))
    check_rows("ce_kd", pair.outputs, pair.batch, rows, mode, {"shift": shift, **kwargs})


@given(labelled, kwargs_of)
def test_the_gradient_is_that_of_the_formula(pair: Pair, kwargs: Any) -> None:
    check_slopes(
        "ce_kd",
        pair.outputs,
        pair.batch,
        lambda at, scores: value(pair, at, scores, True, **kwargs),
        pair.counts(),
        kwargs,
    )


@pytest.mark.parametrize(("alpha", "other"), [(0.0, "token_ce"), (1.0, "forward_kl")])
@pytest.mark.parametrize("mode", ["mean", "none"])
def test_its_ends_are_other_losses_even_where_the_other_term_is_infinite(alpha: float, other: str, mode: str) -> None:
    student, teacher = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([2, 1, 0, 6])
    student[:, 5] = -math.inf  # where the teacher has mass
    if other == "forward_kl":
        teacher[:, 5] = -math.inf
        labels[0] = 5  # that the student cannot have
    batch = {"teacher_logits": teacher, "labels": labels}
    found, gradients = loss_and_gradients(resolve("ce_kd", alpha=alpha, reduction=mode), {"logits": student}, batch)
    used = batch if other == "forward_kl" else {"labels": labels}
    expected, wanted = loss_and_gradients(resolve(other, reduction=mode), {"logits": student}, used)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, wanted)
    assert found.isfinite().all()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["mean", "none"])
def test_what_does_not_count_may_hold_anything(junk: float, mode: str) -> None:
    student, teacher = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, IGNORED, 2], [IGNORED, IGNORED, 0, 1]])
    dropped = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]]).bool().unsqueeze(-1)
    batch = {"teacher_logits": teacher, "labels": labels}
    expected, _ = loss_and_gradients(resolve("ce_kd", reduction=mode), {"logits": student}, batch)
    spoilt = {"teacher_logits": torch.where(dropped, junk, teacher), "labels": labels}
    found, gradients = loss_and_gradients(
        resolve("ce_kd", reduction=mode), {"logits": torch.where(dropped, junk, student)}, spoilt
    )
    assert torch.equal(found, expected)
    assert torch.equal(gradients["logits"] == 0, dropped.expand_as(student))


def test_the_teacher_gets_no_gradient() -> None:
    teacher = torch.zeros(2, 3, requires_grad=True)
    outputs = {"logits": torch.ones(2, 3, requires_grad=True), "teacher_logits": teacher}
    torch.autograd.backward(resolve("ce_kd")(outputs, {"labels": torch.tensor([0, 1])})["loss"])
    assert teacher.grad is None


def test_without_labels_there_is_an_error() -> None:
    with pytest.raises(LossInputError, match="ce_kd: 'labels' or 'shift_labels' must be given") as caught:
        resolve("ce_kd")(HALVES, {})
    assert caught.value.code == "missing-tensor"


@pytest.mark.parametrize("mode", ["mean", "none"])
@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_a_label_out_of_range_is_named(name: str, mode: str) -> None:
    outputs = {"logits": torch.zeros(1, 4, 3, requires_grad=True), "teacher_logits": torch.zeros(1, 4, 3)}
    with pytest.raises(LossInputError) as caught:
        resolve("ce_kd", reduction=mode)(outputs, {name: torch.tensor([[0, 3, IGNORED, 2]])})
    expected = f"ce_kd: {name!r} must lie in [0, 3) (vocab=3) or be ignore_index=-100; 1 of 4"
    assert expected in str(caught.value)


def test_what_counts_is_reported() -> None:
    labels = torch.tensor([[2, IGNORED, 1, 2]])
    outputs = {"logits": torch.zeros(1, 4, 3), "teacher_logits": torch.ones(1, 4, 3)}
    metrics = resolve("ce_kd")(outputs, {"labels": labels})["metrics"]
    assert metrics == {"num_tokens": 2}
    assert resolve("ce_kd", metrics=False)(outputs, {"labels": labels})["metrics"] == {}


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"alpha": -0.1}, ("alpha", "in [0, 1]")),
        ({"alpha": 1.1}, ("alpha", "in [0, 1]")),
        ({"alpha": True}, ("alpha",)),
        ({"temperature": 0.0}, ("temperature", "a number > 0")),
    ],
    ids=str,
)
def test_kwargs_out_of_range_are_refused(kwargs: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("ce_kd", **kwargs)
    assert all(part in str(caught.value) for part in ("ce_kd", *parts))
