import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from references.distillation import (
    HALVES,
    Pair,
    check_equality,
    check_gradient,
    check_junk,
    check_reductions,
    check_reported,
    check_vocabulary_mask,
    common,
    pairs,
    reductions,
    resolve,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({}, 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), id="as it is"),
        pytest.param({"temperature": 0.5}, 0.1 * math.log(1 / 5) + 0.9 * math.log(9 / 5), id="cold"),
        pytest.param(
            {"temperature": 0.5, "scale_tau2": True},
            (0.1 * math.log(1 / 5) + 0.9 * math.log(9 / 5)) / 4,
            id="cold, times the square",
        ),
        pytest.param({"reduction": "sum"}, 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), id="sum"),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    assert resolve("forward_kl", **kwargs)(HALVES, {})["loss"].item() == pytest.approx(expected, rel=1e-13)


drawn_kwargs = common


@given(pairs(), st.booleans(), reductions, drawn_kwargs)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    check_reductions("forward_kl", pair, shift, mode, kwargs)


@given(pairs(least=1), drawn_kwargs)
def test_the_gradient_is_that_of_the_formula_and_the_teacher_has_none(pair: Pair, kwargs: Any) -> None:
    check_gradient("forward_kl", pair, kwargs)


@given(pairs(least=1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_does_not_count_may_hold_anything(pair: Pair, junk: float) -> None:
    check_junk("forward_kl", pair, junk)


def test_classes_that_both_have_masked_are_as_good_as_absent() -> None:
    check_vocabulary_mask("forward_kl")


def test_equals_have_nothing_to_learn() -> None:
    check_equality("forward_kl", exact=True)


def test_what_counts_is_reported() -> None:
    check_reported("forward_kl")


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"temperature": 0.0}, ("temperature", "a number > 0")),
        ({"temperature": -1.0}, ("temperature",)),
        ({"temperature": math.nan}, ("temperature",)),
        ({"temperature": True}, ("temperature",)),
        ({"scale_tau2": 1}, ("scale_tau2",)),
        ({"tau": 2.0}, ("tau", "unknown argument")),
    ],
    ids=str,
)
def test_kwargs_out_of_range_are_refused(kwargs: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("forward_kl", **kwargs)
    assert all(part in str(caught.value) for part in ("forward_kl", *parts))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(LossInputError, match="teacher_logits"):
        resolve("forward_kl")({"logits": torch.zeros(2, 4)}, {"teacher_logits": torch.zeros(2, 5)})


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_side_has_masked(who: str) -> None:
    whole, part = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    student, teacher = (part, whole) if who == "student" else (whole, part)
    loss = resolve("forward_kl")({"logits": student}, {"teacher_logits": teacher})["loss"].item()
    assert loss == pytest.approx(math.inf if who == "student" else math.log(3 / 2))


def test_it_is_kl_div_of_torch() -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    found = resolve("forward_kl")({"logits": student}, {"teacher_logits": teacher})["loss"]
    torch.testing.assert_close(found, expected)


def test_position_t_counts_when_label_t_plus_1_does() -> None:
    logits = torch.zeros(1, 3, 2).double()
    teacher = torch.tensor([[[0.0, 9.0], [0.0, math.log(3)], [0.0, -9.0]]], dtype=torch.float64)
    batch = {"teacher_logits": teacher, "labels": torch.tensor([[0, -100, 1]])}
    expected = resolve("forward_kl")(HALVES, {})["loss"]
    torch.testing.assert_close(resolve("forward_kl")({"logits": logits}, batch)["loss"], expected)
    aligned = {"teacher_logits": teacher, "shift_labels": torch.tensor([[-100, 1, -100]])}
    torch.testing.assert_close(resolve("forward_kl")({"logits": logits}, aligned)["loss"], expected)


def test_high_temperatures_times_the_square_tend_to_half_the_variance_of_the_difference() -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss_fn = resolve("forward_kl", temperature=1e4, scale_tau2=True, reduction="none")
    found = loss_fn({"logits": student}, {"teacher_logits": teacher})["loss"]
    torch.testing.assert_close(found, (student - teacher).var(-1, correction=0) / 2, rtol=1e-3, atol=0)
