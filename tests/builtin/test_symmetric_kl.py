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
        pytest.param(
            {},
            (0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)) / 2 + (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2,
            id="half",
        ),
        pytest.param(
            {"ratio": 0.25},
            (0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)) / 4 + 3 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 4,
            id="a quarter",
        ),
        pytest.param({"ratio": 1}, 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), id="forward"),
        pytest.param({"ratio": 0}, 0.5 * math.log(2) + 0.5 * math.log(2 / 3), id="reverse"),
        pytest.param(
            {"ratio": 0.25, "temperature": 0.5, "scale_tau2": True},
            ((0.1 * math.log(1 / 5) + 0.9 * math.log(9 / 5)) / 4 + 3 * (0.5 * math.log(5) + 0.5 * math.log(5 / 9)) / 4)
            / 4,
            id="cold, times the square",
        ),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    assert resolve("symmetric_kl", **kwargs)(HALVES, {})["loss"].item() == pytest.approx(expected, rel=1e-13)


drawn_kwargs = st.tuples(common, st.sampled_from([0.0, 0.25, 0.5, 1.0])).map(lambda both: {**both[0], "ratio": both[1]})


@given(pairs(), st.booleans(), reductions, drawn_kwargs)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    check_reductions("symmetric_kl", pair, shift, mode, kwargs)


@given(pairs(least=1), drawn_kwargs)
def test_the_gradient_is_that_of_the_formula_and_the_teacher_has_none(pair: Pair, kwargs: Any) -> None:
    check_gradient("symmetric_kl", pair, kwargs)


@given(pairs(least=1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_does_not_count_may_hold_anything(pair: Pair, junk: float) -> None:
    check_junk("symmetric_kl", pair, junk)


def test_classes_that_both_have_masked_are_as_good_as_absent() -> None:
    check_vocabulary_mask("symmetric_kl")


def test_equals_have_nothing_to_learn() -> None:
    check_equality("symmetric_kl", exact=True)


def test_what_counts_is_reported() -> None:
    check_reported("symmetric_kl")


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"temperature": 0.0}, ("temperature", "a number > 0")),
        ({"temperature": -1.0}, ("temperature",)),
        ({"temperature": math.nan}, ("temperature",)),
        ({"temperature": True}, ("temperature",)),
        ({"scale_tau2": 1}, ("scale_tau2",)),
        ({"tau": 2.0}, ("tau", "unknown argument")),
        ({"ratio": -0.1}, ("ratio", "in [0, 1]")),
        ({"ratio": 1.1}, ("ratio", "in [0, 1]")),
    ],
    ids=str,
)
def test_kwargs_out_of_range_are_refused(kwargs: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("symmetric_kl", **kwargs)
    assert all(part in str(caught.value) for part in ("symmetric_kl", *parts))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(LossInputError, match="teacher_logits"):
        resolve("symmetric_kl")({"logits": torch.zeros(2, 4)}, {"teacher_logits": torch.zeros(2, 5)})


@pytest.mark.parametrize(("ratio", "other"), [(1.0, "forward_kl"), (0.0, "reverse_kl")])
@pytest.mark.parametrize("masked", [False, True])
def test_its_ends_are_other_losses(ratio: float, other: str, masked: bool) -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if masked:  # where the divergence of the other end would be infinite
        (teacher if other == "forward_kl" else student)[:, 2] = -math.inf
    batch = {"teacher_logits": teacher}
    for mode in ("mean", "none"):
        kwargs: dict[str, Any] = {"reduction": mode, "temperature": 2.0}
        found, gradients = loss_and_gradients(
            resolve("symmetric_kl", ratio=ratio, **kwargs), {"logits": student}, batch
        )
        expected, wanted = loss_and_gradients(resolve(other, **kwargs), {"logits": student}, batch)
        assert torch.equal(found, expected)
        assert torch.equal(gradients["logits"], wanted["logits"])
    assert found.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_side_has_masked(who: str) -> None:
    whole, part = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    student, teacher = (part, whole) if who == "student" else (whole, part)
    loss = resolve("symmetric_kl")({"logits": student}, {"teacher_logits": teacher})["loss"].item()
    assert loss == pytest.approx(math.inf)
