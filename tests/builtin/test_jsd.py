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
            (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)) / 2
            + (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)) / 2,
            id="half",
        ),
        pytest.param({"beta": 0}, 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), id="forward"),
        pytest.param({"beta": 1}, 0.5 * math.log(2) + 0.5 * math.log(2 / 3), id="reverse"),
        pytest.param(
            {"beta": 0.2},
            0.2 * (0.25 * math.log(0.25 / 0.45) + 0.75 * math.log(0.75 / 0.55))
            + 0.8 * (0.5 * math.log(0.5 / 0.45) + 0.5 * math.log(0.5 / 0.55)),
            id="a fifth",
        ),
    ],
)
def test_a_loss_by_hand(kwargs: Any, expected: float) -> None:
    assert resolve("jsd", **kwargs)(HALVES, {})["loss"].item() == pytest.approx(expected, rel=1e-13)


drawn_kwargs = st.tuples(common, st.sampled_from([0.0, 0.1, 0.5, 1.0])).map(lambda both: {**both[0], "beta": both[1]})


@given(pairs(), st.booleans(), reductions, drawn_kwargs)
def test_every_reduction_is_that_of_the_formula(pair: Pair, shift: bool, mode: str, kwargs: Any) -> None:
    check_reductions("jsd", pair, shift, mode, kwargs)


@given(pairs(least=1), drawn_kwargs)
def test_the_gradient_is_that_of_the_formula_and_the_teacher_has_none(pair: Pair, kwargs: Any) -> None:
    check_gradient("jsd", pair, kwargs)


@given(pairs(least=1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_does_not_count_may_hold_anything(pair: Pair, junk: float) -> None:
    check_junk("jsd", pair, junk)


def test_classes_that_both_have_masked_are_as_good_as_absent() -> None:
    check_vocabulary_mask("jsd")


def test_equals_have_nothing_to_learn() -> None:
    check_equality("jsd", exact=False)


def test_what_counts_is_reported() -> None:
    check_reported("jsd")


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"temperature": 0.0}, ("temperature", "a number > 0")),
        ({"temperature": -1.0}, ("temperature",)),
        ({"temperature": math.nan}, ("temperature",)),
        ({"temperature": True}, ("temperature",)),
        ({"scale_tau2": 1}, ("scale_tau2",)),
        ({"tau": 2.0}, ("tau", "unknown argument")),
        ({"beta": -0.1}, ("beta", "in [0, 1]")),
        ({"beta": 1.1}, ("beta", "in [0, 1]")),
    ],
    ids=str,
)
def test_kwargs_out_of_range_are_refused(kwargs: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(LossConfigError) as caught:
        resolve_loss("jsd", **kwargs)
    assert all(part in str(caught.value) for part in ("jsd", *parts))


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(LossInputError, match="teacher_logits"):
        resolve("jsd")({"logits": torch.zeros(2, 4)}, {"teacher_logits": torch.zeros(2, 5)})


@pytest.mark.parametrize(("beta", "other"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
@pytest.mark.parametrize("masked", [False, True])
def test_its_ends_are_other_losses(beta: float, other: str, masked: bool) -> None:
    student, teacher = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if masked:  # where the divergence of the other end would be infinite
        (teacher if other == "forward_kl" else student)[:, 2] = -math.inf
    batch = {"teacher_logits": teacher}
    for mode in ("mean", "none"):
        kwargs: dict[str, Any] = {"reduction": mode, "temperature": 2.0}
        found, gradients = loss_and_gradients(resolve("jsd", beta=beta, **kwargs), {"logits": student}, batch)
        expected, wanted = loss_and_gradients(resolve(other, **kwargs), {"logits": student}, batch)
        assert torch.equal(found, expected)
        assert torch.equal(gradients["logits"], wanted["logits"])
    assert found.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_side_has_masked(who: str) -> None:
    whole, part = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -math.inf]])
    student, teacher = (part, whole) if who == "student" else (whole, part)
    loss = resolve("jsd")({"logits": student}, {"teacher_logits": teacher})["loss"].item()
    assert loss == pytest.approx(((1 / 3) * math.log(2) + (2 / 3) * math.log(4 / 5) + math.log(6 / 5)) / 2)


@given(pairs(least=1, bound=300.0), st.sampled_from([0.1, 0.5, 0.9]))
def test_it_is_bounded(pair: Pair, beta: float) -> None:
    values = resolve("jsd", beta=beta, reduction="none")(pair.outputs, pair.batch)["loss"]
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert ((values >= -1e-12) & (values <= bound + 1e-12)).all()


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.5, 0.95, 1.0, 0, 1])
def test_there_is_no_warning_away_from_the_ends_or_at_them(beta: float) -> None:
    assert resolve_loss("jsd", beta=beta).kwargs["beta"] == beta


@pytest.mark.parametrize(
    ("beta", "parts"), [(0.01, "beta=0.01.*beta=0 itself is forward_kl"), (0.97, "beta=1 itself is reverse_kl")]
)
def test_near_an_end_there_is_a_warning_and_next_to_no_loss(beta: float, parts: str) -> None:
    with pytest.warns(UserWarning, match=parts):
        loss_fn = resolve_loss("jsd", beta=beta)
    assert 0 < loss_fn(HALVES, {})["loss"] < 0.01
    with pytest.warns(UserWarning, match=parts):
        resolve_loss("jsd")(HALVES, {}, beta=beta)
