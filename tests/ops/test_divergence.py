from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from ops.cases import (
    Way,
    assert_near,
    divergence_case,
    divergences,
    expect,
    going,
    gradient_of,
    seeds,
    temperatures,
    ways,
)
from tensafe.training.losses.ops.divergence import Divergence, divergence

if TYPE_CHECKING:
    from ops.cases import Draws

KINDS = ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_rkl", "symmetric_kl", "tvd"]
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
        ("skew_kl", 0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625)),
        ("skew_rkl", 0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625)),
        ("symmetric_kl", 0.5 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) - 0.25 * math.log(0.75)),
        ("tvd", 0.25),
    ],
)
def test_by_hand(kind: str, expected: float, way: str) -> None:
    with going(Way(way)):
        assert divergence(HALF.double(), QUARTER.double(), Divergence(kind)).item() == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


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
            (divergence(s, t, Divergence("skew_kl", beta)), divergence(t, s, Divergence("skew_rkl", beta))),
            (
                divergence(s, t, Divergence("jsd", beta)),
                beta * divergence(s, t, Divergence("skew_kl", beta))
                + (1 - beta) * divergence(s, t, Divergence("skew_rkl", 1 - beta)),
            ),
            (
                divergence(s, t, Divergence("symmetric_kl", beta)),
                beta * divergence(s, t) + (1 - beta) * divergence(s, t, Divergence("reverse_kl")),
            ),
            (divergence(s, t, Divergence("tvd")), divergence(t, s, Divergence("tvd"))),
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
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_of_16_and_32_bits_may_be_mixed(kind: str, way: str) -> None:
    student, teacher = QUARTER.bfloat16().requires_grad_(), HALF.clone().requires_grad_()
    with going(Way(way)):
        value = divergence(student, teacher, Divergence(kind))  # type: ignore[arg-type]
        torch.autograd.backward(value)
        expected = divergence(student.float(), teacher, Divergence(kind))  # type: ignore[arg-type]
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, expected)
    assert [leaf.grad.dtype for leaf in (student, teacher) if leaf.grad is not None] == [torch.bfloat16, torch.float32]


@given(seeds, ways(torch.float32), temperatures)
def test_total_variation_is_that_of_float64(draws: Draws, way: Way, temperature: float) -> None:
    formula = Divergence("tvd", temperature=temperature)
    case = divergence_case(draws.normal(5, 7), draws.normal(5, 7), formula, draws.mask(5))
    upstream = draws.coefficients(5)
    assert case.dot
    for dtype in (torch.float64, torch.float32):
        leaves = case.leaves(dtype)
        with going(way):
            values = case.values(*leaves)
            torch.autograd.backward((values * upstream.to(dtype)).sum() + case.dot(upstream, *leaves))
        expected = expect(case, leaves, upstream)
        counts = case.counts & (upstream != 0)
        assert_near(values.detach()[counts], expected.values[counts], case.size)
        for leaf, gradient in zip(leaves, expected.gradients, strict=True):
            assert_near(gradient_of(leaf), 2 * gradient, 10 * (1 + case.size))


@every_way
@pytest.mark.parametrize("kind", KINDS[3:])
def test_classes_that_both_have_masked_are_as_good_as_absent(kind: str, way: str) -> None:
    inner = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1)]
    outer = [torch.nn.functional.pad(each, (2, 1), value=-math.inf) for each in inner]
    found = []
    for student, teacher in (inner, outer):
        leaves = [each.clone().requires_grad_() for each in (student, teacher)]
        with going(Way(way)):
            values = divergence(leaves[0], leaves[1], Divergence(kind, 0.3))  # type: ignore[arg-type]
            torch.autograd.backward(values.sum())
        found.append((values.detach(), *map(gradient_of, leaves)))
    torch.testing.assert_close(found[1][0], found[0][0])
    for wide, narrow in zip(found[1][1:], found[0][1:], strict=True):
        torch.testing.assert_close(wide, torch.nn.functional.pad(narrow, (2, 1)))


@every_way
@pytest.mark.parametrize("kind", KINDS[3:])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_class_that_only_one_of_them_has(kind: str, who: str, way: str) -> None:
    whole, part = (torch.randn(1, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    part[0, 2] = -math.inf
    student, teacher = (part, whole) if who == "student" else (whole, part)
    leaves = [each.clone().requires_grad_() for each in (student, teacher)]
    with going(Way(way)):
        value = divergence(leaves[0], leaves[1], Divergence(kind, 0.3))  # type: ignore[arg-type]
        torch.autograd.backward(value)
    expected = reference.divergences(student, teacher, kind, 0.3, 1.0)
    torch.testing.assert_close(value.detach(), expected)
    assert value.isfinite() == (kind != "symmetric_kl")
    assert kind == "symmetric_kl" or all(gradient_of(leaf).isfinite().all() for leaf in leaves)


@every_way
@pytest.mark.parametrize("kind", ["skew_kl", "skew_rkl"])
@pytest.mark.parametrize("gap", [86.0, 95.0, 103.0, 103.5, 103.9, 104.5])
def test_a_probability_that_can_hardly_be_told_from_0_has_no_share(kind: str, gap: float, way: str) -> None:
    leaves = [torch.tensor([[0.0, -each]], requires_grad=True) for each in (gap, 300.0)]
    for student, teacher in (leaves, leaves[::-1]):
        with going(Way(way)):
            value = divergence(student, teacher, Divergence(kind, 0.001))  # type: ignore[arg-type]
            torch.autograd.backward(value)
        assert value.item() == pytest.approx(0, abs=1e-30)
    assert all(gradient_of(leaf).abs().max() < 1e-30 for leaf in leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind: str) -> None:
    student, teacher = (torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    inputs = [each.requires_grad_() for each in (student, teacher)]
    with going(Way("chunks")):

        def form(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return divergence(student, teacher, Divergence(kind, 0.3, 2.0))  # type: ignore[arg-type]

        assert torch.autograd.gradcheck(form, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(form, inputs, fast_mode=True)
