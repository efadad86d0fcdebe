"""What a call leaves alone, and what it does not depend on: inputs, their layout, random numbers, grad mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ops.cases import EXAMPLES, Way, assert_near, expect, going, gradient_of, largest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ops.cases import Case

every_example = pytest.mark.parametrize("name", EXAMPLES)
every_way = pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in EXAMPLES
        for way in (Way("chunks"), Way("plain"), Way("chunks", 16, True), Way("chunks", 16, False))
        if (way.by_vocabulary is None) == ("linear" not in name)
    ],
    ids=str,
)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def upstream(case: Case) -> Tensor:
    return torch.linspace(-1, 1, case.counts.shape[0], dtype=torch.float64)


def call(case: Case, inputs: list[Tensor]) -> Tensor:
    """Return all that an operation makes of inputs, weighted and added up."""
    values = case.values(*inputs)
    total = (values * upstream(case).to(values.dtype)).sum()
    return total if case.dot is None else total + case.dot(upstream(case), *inputs)


@every_way
@every_dtype
def test_inputs_and_random_numbers_are_left_alone(name: str, way: Way, dtype: torch.dtype) -> None:
    case = EXAMPLES[name]
    leaves = case.leaves(dtype)
    before = [(leaf.detach().clone(), leaf._version) for leaf in leaves]
    state = torch.get_rng_state()
    with going(way):
        torch.autograd.backward(call(case, leaves))
    assert [leaf._version for leaf in leaves] == [version for _, version in before]
    assert all(torch.equal(leaf, copy) for leaf, (copy, _) in zip(leaves, before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@every_way
@every_dtype
def test_two_calls_agree_to_the_bit(name: str, way: Way, dtype: torch.dtype) -> None:
    case = EXAMPLES[name]
    found = []
    with going(way):
        for _ in range(2):
            leaves = case.leaves(dtype)
            total = call(case, leaves)
            torch.autograd.backward(total)
            found.append([total.detach(), *map(gradient_of, leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@every_way
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
def test_values_do_not_depend_on_grad_mode(name: str, way: Way, mode: Callable[[], torch.no_grad]) -> None:
    case = EXAMPLES[name]
    leaves = case.leaves(torch.float32)
    with going(way):
        expected = case.values(*leaves), call(case, leaves)
        with mode():
            found = case.values(*leaves), call(case, leaves)
        assert not any(each.requires_grad for each in found)
        made_there = [leaf.detach().clone() for leaf in leaves]
        with mode():
            assert torch.equal(case.values(*[leaf.clone() for leaf in made_there]), expected[0])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda tensor: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor,
    "rows last": lambda tensor: tensor.movedim(-1, 0).contiguous().movedim(0, -1),
    "every second": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
    "padded": lambda tensor: torch.nn.functional.pad(tensor, (1, 1))[..., 1:-1],
    "expanded": lambda tensor: tensor[:1].expand(tensor.shape),
    "one number": lambda tensor: tensor.sum().expand(tensor.shape) / 8,
}


@every_way
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_will_do(name: str, way: Way, layout: str) -> None:
    case = EXAMPLES[name]
    leaves = case.leaves(torch.float64)
    with going(way):
        torch.autograd.backward(call(case, [LAYOUTS[layout](leaf) for leaf in leaves]))
    copies = case.leaves(torch.float64)
    laid = [LAYOUTS[layout](copy).contiguous() for copy in copies]
    twice = 1 if case.dot is None else 2
    gradients = [twice * gradient for gradient in expect(case, laid, upstream(case)).gradients]
    torch.autograd.backward(laid, gradients)
    for leaf, copy in zip(leaves, copies, strict=True):
        assert_near(gradient_of(leaf), gradient_of(copy), 10 * (1 + case.size) * (1 + largest(gradient_of(copy))))


@every_example
def test_gradients_have_the_layout_of_their_tensors(name: str) -> None:
    case = EXAMPLES[name]
    leaves = [LAYOUTS["transposed"](leaf.detach()).requires_grad_() for leaf in case.leaves(torch.float64)]
    with going(Way("chunks")):
        torch.autograd.backward(call(case, leaves))
    assert [gradient_of(leaf).stride() for leaf in leaves] == [leaf.stride() for leaf in leaves]
