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
        pytest.param({}, 0.5 * math.log(2) + 0.5 * math.log(2 / 3), id="as it is"),
        pytest.param({"temperature": 0.5}, 0.5 * math.log(5) + 0.5 * math.log(5 / 9), id="cold"),
        pytest.param(
            {"temperature": 0.5, "scale_tau2": True},
            (0.5 * math.log(5) + 0.5 * math.log(5 / 9)) / 4,
            id="cold, times the square",
        ),
        pytest.param({"reduction": "sum"}, 0.5 * math.log(2) + 0.5 * math.log(2 / 3), id="sum"),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    assert resolve("reverse_kl", **kwargs)(HALVES, {})["loss"].item() == pytest.approx(expected, rel=1e-13)


drawn_kwargs = common


@given(pairs(), st.booleans(), reductions, drawn_kwargs)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    check_reductions("reverse_kl", pair, shift, mode, kwargs)


@given(pairs(least=1), drawn_kwargs)
def test_the_gradient_is_that_of_the_formula_and_the_teacher_has_none(pair: Pair, kwargs: Any) -> None:
    check_gradient("reverse_kl", pair, kwargs)


@given(pairs(least=1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_does_not_count_may_hold_anything(pair: Pair, junk: float) -> None:
    check_junk("reverse_kl", pair, junk)


def test_classes_that_both_have_masked_are_as_good_as_absent() -> None:
    check_vocabulary_mask("reverse_kl")


def test_equals_have_nothing_to_learn() -> None:
    check_equality("reverse_kl", exact=True)


def test_what_counts_is_reported() -> None:
    check_reported("reverse_kl")


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
        resolve_loss("reverse_kl", **kwargs)
    assert all(part in str(caught.value) for part in ("reverse_kl", *parts))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(LossInputError, match="teacher_logits"):
        resolve("reverse_kl")({"logits": torch.zeros(2, 4)}, {"teacher_logits": torch.zeros(2, 5)})


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_side_has_masked(who: str) -> None:
    whole, part = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    student, teacher = (part, whole) if who == "student" else (whole, part)
    loss = resolve("reverse_kl")({"logits": student}, {"teacher_logits": teacher})["loss"].item()
    assert loss == pytest.approx(math.inf if who == "teacher" else math.log(3 / 2))


@given(pairs(least=1), common)
def test_it_is_the_forward_kl_of_the_other_way_round(pair: Pair, kwargs: Any) -> None:
    forward, reverse = resolve("forward_kl", **kwargs), resolve("reverse_kl", **kwargs)
    swapped = {**pair.batch, "teacher_logits": pair.logits}
    expected = forward({"logits": pair.teacher}, swapped)["loss"]
    torch.testing.assert_close(reverse(pair.outputs, pair.batch)["loss"], expected)
