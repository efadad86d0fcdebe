"""The divergence from a few classes: chunks against torch's own operations, and against the whole of a teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import Way, going, gradient_of, seeds, ways
from references.distillation import topk
from tensafe.training.losses.ops.topk_divergence import TopK, topk_divergence, topk_divergence_dot

if TYPE_CHECKING:
    from ops.cases import Draws

TAILS = ["bucket", "drop", "renormalise_teacher", "renormalise_both"]
formulas = st.builds(TopK, st.sampled_from(TAILS), st.sampled_from([1.0, 0.5, 3.0]))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(draws=seeds, way=ways(torch.float32), formula=formulas, k=st.integers(1, 6))
def test_values_and_gradients(draws: Draws, way: Way, formula: TopK, k: int, dtype: torch.dtype) -> None:
    logits = draws.normal(2, 4, 6, spread=3.0).to(dtype)
    found = torch.log_softmax(draws.normal(2, 4, 6, spread=2.0), -1).topk(k, -1)
    counts, upstream = draws.mask(2, 4), draws.coefficients(2, 4)
    leaf, spoiled = logits.clone().requires_grad_(), logits.masked_fill(~counts.unsqueeze(-1), math.nan)
    with going(Way("plain")):  # by torch's own operations, in float64
        inner = logits.double().requires_grad_()
        wanted = topk_divergence(inner, found.indices, found.values, formula, counts=counts)
        torch.autograd.backward(wanted, upstream)
    with going(way):
        leaf = spoiled.requires_grad_()
        values = topk_divergence(leaf, found.indices, found.values, formula, counts=counts)
        torch.autograd.backward(values, upstream.to(values.dtype))
        other = spoiled.detach().requires_grad_()
        total = topk_divergence_dot(other, found.indices, found.values, upstream * counts, formula)
        torch.autograd.backward(total)
    exact = dtype is torch.float64
    by: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 1e-5, "atol": 1e-4}
    assert values.dtype is (torch.float64 if exact else torch.float32)
    torch.testing.assert_close(values.detach().double(), wanted.detach(), **by)
    torch.testing.assert_close(total.detach().double(), (wanted.detach() * upstream).sum(), **by)
    if dtype.itemsize == 2:
        by = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-4}
    for given_to in (leaf, other):
        assert gradient_of(given_to).dtype is dtype
        torch.testing.assert_close(gradient_of(given_to).double(), gradient_of(inner), **by)
        assert (gradient_of(given_to)[~counts] == 0).all()


@given(draws=seeds, way=ways(torch.float64), formula=formulas, k=st.integers(1, 5))
def test_values_are_those_of_the_formula(draws: Draws, way: Way, formula: TopK, k: int) -> None:
    logits = draws.normal(4, 5, spread=2.0)
    found = torch.log_softmax(draws.normal(4, 5), -1).topk(k, -1)
    with going(way):
        values = topk_divergence(logits, found.indices, found.values, formula).tolist()
    for row, value in enumerate(values):
        told = list(zip(found.indices[row].tolist(), found.values[row].tolist(), strict=True))
        assert value == pytest.approx(topk(logits[row].tolist(), told, *formula), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("way", ["chunks", "traced"])
def test_gradients_of_gradients(tail: str, way: str) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, generator=draws, dtype=torch.float64, requires_grad=True)
    found = torch.randn(3, 5, generator=draws, dtype=torch.float64).log_softmax(-1).topk(2, -1)
    formula = TopK(tail, 2.0)  # type: ignore[arg-type]
    coefficients = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    with going(Way(way)):
        for form in (
            lambda logits: topk_divergence(logits, found.indices, found.values, formula),
            lambda logits: topk_divergence_dot(logits, found.indices, found.values, coefficients, formula),
        ):
            assert torch.autograd.gradcheck(form, [logits], fast_mode=True)
            assert torch.autograd.gradgradcheck(form, [logits], fast_mode=True)


@pytest.mark.parametrize("way", ["chunks", "plain", "traced"])
@pytest.mark.parametrize("bad", [5, -1])
def test_an_id_out_of_range_is_an_index_error(way: str, bad: int) -> None:
    ids = torch.tensor([[0, bad]])
    with going(Way(way)), pytest.raises(IndexError, match="Teacher id is out of bounds"):
        topk_divergence(torch.zeros(1, 5), ids, torch.full((1, 2), -1.0))
