import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
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
    softmax,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

pytestmark = pytest.mark.usefixtures("path")


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        pytest.param({}, 1 / 4, id="as it is"),
        pytest.param({"temperature": 0.5}, 4 / 10, id="cold"),
        pytest.param({"temperature": 0.5, "scale_tau2": True}, 1 / 10, id="cold, times the square"),
        pytest.param({"reduction": "sum"}, 1 / 4, id="sum"),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    assert resolve("tvd", **kwargs)(HALVES, {})["loss"].item() == pytest.approx(expected, rel=1e-13)


drawn_kwargs = common


@given(pairs(), st.booleans(), reductions, drawn_kwargs)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    check_reductions("tvd", pair, shift, mode, kwargs)


@given(pairs(least=1, bound=3.0), drawn_kwargs)
def test_the_gradient_is_that_of_the_formula_and_the_teacher_has_none(pair: Pair, kwargs: Any) -> None:
    for student, teacher in zip(*(each.flatten(0, -2).tolist() for each in (pair.logits, pair.teacher)), strict=True):
        both = (softmax(each, kwargs["temperature"]) for each in (student, teacher))
        assume(all(p == q == 1 or abs(p - q) > 1e-3 for p, q in zip(*both, strict=True)))  # no gradient at a kink
    check_gradient("tvd", pair, kwargs)


@given(pairs(least=1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_does_not_count_may_hold_anything(pair: Pair, junk: float) -> None:
    check_junk("tvd", pair, junk)


def test_classes_that_both_have_masked_are_as_good_as_absent() -> None:
    check_vocabulary_mask("tvd")


def test_equals_have_nothing_to_learn() -> None:
    check_equality("tvd", exact=True)


def test_what_counts_is_reported() -> None:
    check_reported("tvd")


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
        resolve_loss("tvd", **kwargs)
    assert all(part in str(caught.value) for part in ("tvd", *parts))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(LossInputError, match="teacher_logits"):
        resolve("tvd")({"logits": torch.zeros(2, 4)}, {"teacher_logits": torch.zeros(2, 5)})


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_side_has_masked(who: str) -> None:
    whole, part = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    student, teacher = (part, whole) if who == "student" else (whole, part)
    loss = resolve("tvd")({"logits": student}, {"teacher_logits": teacher})["loss"].item()
    assert loss == pytest.approx(1 / 3)


@given(pairs(least=1, bound=300.0))
def test_it_is_symmetric_and_at_most_1(pair: Pair) -> None:
    loss_fn = resolve("tvd", reduction="none")
    one = loss_fn(pair.outputs, pair.batch)["loss"]
    swapped = {**pair.batch, "teacher_logits": pair.logits}
    torch.testing.assert_close(loss_fn({"logits": pair.teacher}, swapped)["loss"], one)
    assert ((one >= 0) & (one <= 1 + 1e-12)).all()


def test_it_is_1_for_distributions_that_share_nothing() -> None:
    apart = {"logits": torch.tensor([[0.0, -math.inf]]), "teacher_logits": torch.tensor([[-math.inf, 0.0]])}
    assert resolve("tvd")(apart, {})["loss"] == 1.0
