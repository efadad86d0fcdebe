"""Values and gradients of every operation, against its formula in float64."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import (
    CASES,
    DTYPES,
    EXAMPLES,
    Case,
    Way,
    assert_gradients,
    assert_near,
    expect,
    going,
    largest,
    seeds,
    shares,
    ways,
)
from tensafe.training.losses.ops.lean import compute_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.autograd.graph import Node

every_op = pytest.mark.parametrize("op", CASES)
every_dot = pytest.mark.parametrize("op", [op for op in CASES if not op.startswith(("logps", "soft"))])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@st.composite
def calls(draw: st.DrawFn, op: str, dtype: torch.dtype = torch.float64) -> tuple[Case, Tensor, Way]:
    """A case, what comes down to its values, and which way it goes."""
    case = draw(CASES[op])
    upstream = draw(seeds).coefficients(*case.counts.shape, share=draw(shares))
    return case, upstream, draw(ways(dtype))


@every_dtype
@every_op
@given(data=st.data())
def test_values_and_their_gradients(op: str, dtype: torch.dtype, data: st.DataObject) -> None:
    case, upstream, way = data.draw(calls(op, dtype))
    # the plain formula hands NaN * 0 on where nothing but a zero comes down
    counts = case.counts & (upstream != 0) if way.name == "chunks" else case.counts
    leaves = case.spoiled(counts).leaves(dtype)
    with going(way):
        values = case.values(*leaves)
        torch.autograd.backward(values, upstream.to(values.dtype))
    expected = expect(case, leaves, upstream)
    assert values.dtype is compute_dtype(dtype)
    assert_near(values.detach()[counts & (upstream != 0)], expected.values[counts & (upstream != 0)], case.size)
    assert (values[~case.counts] == 0).all()
    assert_gradients(leaves, expected.gradients, case.size, rounded=1)


@every_dtype
@every_dot
@given(data=st.data(), further=st.sampled_from([1.0, -0.3, 0.0]))
def test_a_sum_and_its_gradients(op: str, dtype: torch.dtype, data: st.DataObject, further: float) -> None:
    case, coefficients, way = data.draw(calls(op, dtype))
    leaves = case.spoiled(case.counts & (coefficients != 0)).leaves(dtype)
    assert case.dot
    with going(way):
        total = case.dot(coefficients, *leaves)
        torch.autograd.backward(total * further)
    expected = expect(case, leaves, coefficients)
    assert total.shape == ()
    assert total.dtype is compute_dtype(dtype)
    assert_near(total.detach(), (expected.values * coefficients).sum(), case.size * len(coefficients) * 2)
    # a gradient that is made in the forward pass is rounded there, and once more when it is scaled
    assert_gradients(leaves, [further * gradient for gradient in expected.gradients], case.size, rounded=2)


@every_op
@given(data=st.data())
def test_a_second_backward_pass(op: str, data: st.DataObject) -> None:
    case, upstream, way = data.draw(calls(op))
    forms: list[Callable[..., Tensor]] = [lambda *leaves: (case.values(*leaves) * upstream).sum()]
    if case.dot:
        forms.append(partial(case.dot, upstream))
    for form in forms:
        leaves = case.leaves(torch.float64)
        with going(way):
            total = form(*leaves)
            first = torch.autograd.grad(total, leaves, retain_graph=True)
            second = torch.autograd.grad(total * 2, leaves)
        for index, expected in enumerate(expect(case, leaves, upstream).gradients):
            assert_near(first[index], expected, 10 * (1 + case.size) * (1 + largest(expected)))
            assert_near(second[index], 2 * expected, 10 * (1 + case.size) * (1 + largest(expected)))


@every_dot
@given(data=st.data())
def test_only_gradients_that_are_wanted_are_made(op: str, data: st.DataObject) -> None:
    case, upstream, way = data.draw(calls(op))
    assert case.dot
    leaves = case.leaves(torch.float64)
    wanted = data.draw(st.lists(st.booleans(), min_size=len(leaves), max_size=len(leaves)).filter(any))
    for leaf, is_wanted in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(is_wanted)
    with going(way):
        torch.autograd.backward(case.dot(upstream, *leaves) + (case.values(*leaves) * upstream).sum())
    expected = expect(case, leaves, 2 * upstream)
    some = [(leaf, each) for leaf, each, is_wanted in zip(leaves, expected.gradients, wanted, strict=True) if is_wanted]
    assert_gradients([leaf for leaf, _ in some], [each for _, each in some], case.size, rounded=0)
    assert [leaf.grad is not None for leaf in leaves] == wanted


@pytest.mark.parametrize(
    ("name", "by_vocabulary"),
    [(name, by_vocabulary) for name in EXAMPLES for by_vocabulary in ([False, True] if "linear" in name else [None])],
)
def test_gradients_of_gradients(name: str, by_vocabulary: bool | None) -> None:
    case = EXAMPLES[name]
    leaves = case.leaves(torch.float64)
    coefficients = torch.linspace(-1, 1, case.counts.shape[0], dtype=torch.float64)
    forms: list[Callable[..., Tensor]] = [case.values]
    if case.dot:
        forms.append(partial(case.dot, coefficients))
    with going(Way("chunks", 16, by_vocabulary)):
        for form in forms:
            assert torch.autograd.gradcheck(form, leaves, fast_mode=True)
            assert torch.autograd.gradgradcheck(form, leaves, fast_mode=True)


@pytest.mark.parametrize("name", EXAMPLES)
def test_which_way_is_gone(name: str) -> None:
    case = EXAMPLES[name]
    for way in ("chunks", "plain", "traced"):
        leaves, coefficients = case.leaves(torch.float64), torch.ones_like(case.counts, dtype=torch.float64)
        with going(Way(way)):
            made = [case.values(*leaves), *([] if case.dot is None else [case.dot(coefficients, *leaves)])]
        fused = [any(node.name() in {"_ResultsBackward", "_DotBackward"} for node in graph(each)) for each in made]
        always = name.startswith("linear") and way != "traced"
        assert fused == [way == "chunks" or always] * len(made)


def graph(tensor: Tensor) -> list[Node]:
    """Return what the backward pass of a tensor goes through."""
    found: list[Node] = []
    ahead = [tensor.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None:
            found.append(node)
            ahead += [following for following, _ in node.next_functions]
    return found
