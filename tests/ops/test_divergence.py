from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import Way, divergences, going, seeds, ways
from tensafe.training.losses.ops.divergence import Divergence, divergence

if TYPE_CHECKING:
    from ops.cases import Draws

every_way = pytest.mark.parametrize("way", ["chunks", "plain", "traced"])
HALF, QUARTER = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3.0)]])


@every_way
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("forward_kl", 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),  # sum of P log P/S, P the teacher
        ("reverse_kl", -0.5 * math.log(0.75)),
        (
            "jsd",
            0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625))
            + 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)),
        ),
    ],
)
def test_by_hand(kind: str, expected: float, way: str) -> None:
    with going(Way(way)):
        assert divergence(HALF, QUARTER, Divergence(kind)).item() == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


@given(seeds, divergences, ways(torch.float32), st.floats(0, 10))
def test_it_is_never_negative_and_0_for_equals(draws: Draws, formula: Divergence, way: Way, apart: float) -> None:
    student = draws.normal(4, 6, spread=3.0)
    teacher = student + apart * draws.normal(4, 6)
    with going(way):
        same, shifted = divergence(student, student, formula), divergence(student, student + 2, formula)
        other = divergence(student, teacher, formula)
    assert same.abs().max() < 1e-14
    assert shifted.abs().max() < 1e-14
    assert other.min() > -1e-14


@given(seeds, ways(torch.float32), st.floats(0.01, 0.99), st.floats(0.3, 3))
def test_symmetries(draws: Draws, way: Way, beta: float, temperature: float) -> None:
    s, t = draws.normal(4, 6), draws.normal(4, 6)
    with going(way):
        pairs = [
            (divergence(s, t, Divergence("forward_kl")), divergence(t, s, Divergence("reverse_kl"))),
            (divergence(s, t, Divergence("jsd", beta)), divergence(t, s, Divergence("jsd", 1 - beta))),
            (
                divergence(s, t, Divergence("jsd", temperature=temperature)),
                divergence(s / temperature, t / temperature, Divergence("jsd")),
            ),
        ]
        bound = divergence(100 * s, 100 * t, Divergence("jsd", beta)).max()
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert bound <= -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta)) + 1e-12


@every_way
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_dtypes_of_16_and_32_bits_may_be_mixed(kind: str, way: str) -> None:
    student, teacher = QUARTER.bfloat16().requires_grad_(), HALF.clone().requires_grad_()
    with going(Way(way)):
        value = divergence(student, teacher, Divergence(kind))  # type: ignore[arg-type]
        torch.autograd.backward(value)
        expected = divergence(student.float(), teacher, Divergence(kind))  # type: ignore[arg-type]
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, expected)
    assert [leaf.grad.dtype for leaf in (student, teacher) if leaf.grad is not None] == [torch.bfloat16, torch.float32]
