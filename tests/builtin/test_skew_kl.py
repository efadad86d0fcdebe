import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import loss_and_gradients
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
        pytest.param({}, 0.25 * math.log(0.25 / 0.475) + 0.75 * math.log(0.75 / 0.525), id="a tenth"),
        pytest.param({"alpha": 0.5}, 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625), id="half"),
        pytest.param(
            {"alpha": 0.5, "temperature": 0.5, "scale_tau2": True},
            (0.1 * math.log(0.1 / 0.3) + 0.9 * math.log(0.9 / 0.7)) / 4,
            id="cold, times the square",
        ),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    assert resolve("skew_kl", **kwargs)(HALVES, {})["loss"].item() == pytest.approx(expected, rel=1e-13)


drawn_kwargs = st.tuples(common, st.sampled_from([0.1, 0.5, 0.9])).map(lambda both: {**both[0], "alpha": both[1]})


@given(pairs(), st.booleans(), reductions, drawn_kwargs)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    check_reductions("skew_kl", pair, shift, mode, kwargs)


@given(pairs(least=1), drawn_kwargs)
def test_the_gradient_is_that_of_the_formula_and_the_teacher_has_none(pair: Pair, kwargs: Any) -> None:
    check_gradient("skew_kl", pair, kwargs)


@given(pairs(least=1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_does_not_count_may_hold_anything(pair: Pair, junk: float) -> None:
    check_junk("skew_kl", pair, junk)


def test_classes_that_both_have_masked_are_as_good_as_absent() -> None:
    check_vocabulary_mask("skew_kl")


def test_equals_have_nothing_to_learn() -> None:
    check_equality("skew_kl", exact=False)


def test_what_counts_is_reported() -> None:
    check_reported("skew_kl")


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"temperature": 0.0}, ("temperature", "a number > 0")),
        ({"temperature": -1.0}, ("temperature",)),
        ({"temperature": math.nan}, ("temperature",)),
        ({"temperature": True}, ("temperature",)),
        ({"scale_tau2": 1}, ("scale_tau2",)),
        ({"tau": 2.0}, ("tau", "unknown argument")),
        ({"alpha": 0.0}, ("alpha", "in (0, 1)")),
        ({"alpha": 1.0}, ("alpha", "in (0, 1)")),
        ({"alpha": "0.1"}, ("alpha",)),
    ],
    ids=str,
)
def test_kwargs_out_of_range_are_refused(kwargs: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("skew_kl", **kwargs)
    assert all(part in str(caught.value) for part in ("skew_kl", *parts))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(LossInputError, match="teacher_logits"):
        resolve("skew_kl")({"logits": torch.zeros(2, 4)}, {"teacher_logits": torch.zeros(2, 5)})


@given(pairs(least=1, bound=300.0), st.sampled_from([0.01, 0.1, 0.9]))
def test_it_is_bounded(pair: Pair, alpha: float) -> None:
    values = resolve("skew_kl", alpha=alpha, reduction="none")(pair.outputs, pair.batch)["loss"]
    assert ((values >= -1e-12) & (values <= -math.log(alpha) + 1e-12)).all()


def test_it_is_at_its_bound_for_distributions_that_share_nothing() -> None:
    apart = {"logits": torch.tensor([[0.0, -math.inf]]), "teacher_logits": torch.tensor([[-math.inf, 0.0]])}
    assert resolve("skew_kl", alpha=0.25)(apart, {})["loss"].item() == pytest.approx(math.log(4))


def test_towards_0_it_is_the_forward_kl() -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = {"teacher_logits": teacher}
    found, gradients = loss_and_gradients(resolve("skew_kl", alpha=1e-9), {"logits": student}, batch)
    expected, wanted = loss_and_gradients(resolve("forward_kl"), {"logits": student}, batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, wanted)


def test_towards_1_it_vanishes() -> None:
    assert resolve("skew_kl", alpha=1 - 1e-9)(HALVES, {})["loss"].item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_side_has_masked(who: str) -> None:
    whole, part = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    student, teacher = (part, whole) if who == "student" else (whole, part)
    loss = resolve("skew_kl", alpha=0.5)({"logits": student}, {"teacher_logits": teacher})["loss"].item()
    of_wide = (2 / 3) * math.log((1 / 3) / (5 / 12)) + (1 / 3) * math.log(2)
    of_narrow = math.log((1 / 2) / (5 / 12))
    assert loss == pytest.approx(of_wide if who == "student" else of_narrow, rel=1e-5)
