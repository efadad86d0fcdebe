from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ops.cases import EXAMPLES, Draws, Scored, Way, assert_near, expect, going, gradient_of, linear_case
from tensafe.training.losses.ops.cross_entropy import cross_entropy
from tensafe.training.losses.ops.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_dot
from tensafe.training.losses.ops.row_scores import Formula

if TYPE_CHECKING:
    from torch import Tensor

ROWS, VOCAB, WIDTH = 50, 40, 4


def whole_numbers(*shape: int) -> Tensor:
    """Return numbers whose products 16 bits can hold."""
    return (Draws(0).integers(3, *shape) - 1).double()


@pytest.mark.parametrize("form", ["values", "dot"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_products_by_tokens_are_summed_up_in_float32(dtype: torch.dtype, form: str) -> None:
    """As elsewhere than on a CPU; one token at a time, 16-bit sums of the gradient would lose what is small."""
    labels = Draws(1).labels(VOCAB, ROWS)
    case = linear_case(
        whole_numbers(ROWS, WIDTH), whole_numbers(VOCAB, WIDTH), whole_numbers(VOCAB), Scored(labels), chunk_size=1
    )
    assert case.dot
    ones = torch.ones(ROWS, dtype=torch.float64)
    leaves = case.leaves(dtype)
    with going(Way("chunks", 16, by_vocabulary=False)):
        total = case.dot(ones, *leaves) if form == "dot" else case.values(*leaves).sum()
        torch.autograd.backward(total)
    expected = expect(case, leaves, ones)
    assert_near(total.detach(), expected.values.sum(), case.size * ROWS)
    unit = torch.finfo(dtype).eps / 2
    for leaf, wanted in zip(leaves, expected.gradients, strict=True):
        # the gradient of each logit is rounded before it is multiplied, and at most 1; then their sum is rounded
        atol = 2 * unit * (2 if leaf is leaves[0] else ROWS**0.5) + 6e-8
        torch.testing.assert_close(gradient_of(leaf).double(), wanted, rtol=2 * unit, atol=atol)


DTYPES = {
    "bfloat16 states": (torch.bfloat16, torch.float32, torch.float32),
    "bfloat16 weight": (torch.float32, torch.bfloat16, torch.float32),
    "both kinds of 16 bits": (torch.bfloat16, torch.float16, torch.bfloat16),
    "float64 bias": (torch.float32, torch.float32, torch.float64),
}


@pytest.mark.parametrize("way", ["chunks", "traced"])
@pytest.mark.parametrize("kind", DTYPES)
def test_dtypes_that_differ_are_promoted(kind: str, way: str) -> None:
    case = EXAMPLES["linear_cross_entropy-full"]
    leaves = [
        tensor.to(dtype, copy=True).requires_grad_() for tensor, dtype in zip(case.inputs, DTYPES[kind], strict=True)
    ]
    coefficients = torch.ones(case.counts.shape[0], dtype=torch.float64)
    assert case.dot
    with going(Way(way)):
        values, total = case.values(*leaves), case.dot(coefficients, *leaves)
        torch.autograd.backward(total)
    expected = expect(case, leaves, coefficients)
    assert values.dtype is (torch.float64 if kind == "float64 bias" else torch.float32)
    assert_near(values.detach(), expected.values, case.size)
    assert_near(total.detach(), expected.values.sum(), case.size * len(coefficients))
    for leaf, wanted in zip(leaves, expected.gradients, strict=True):
        assert gradient_of(leaf).dtype is leaf.dtype
        torch.testing.assert_close(gradient_of(leaf).double(), wanted, rtol=8e-3, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, ROWS, 10 * ROWS, None])
def test_chunks_do_not_change_the_result(chunk_size: int | None) -> None:
    draws = Draws(0)
    hidden, weight, labels = draws.normal(ROWS, WIDTH), draws.normal(VOCAB, WIDTH), draws.labels(VOCAB, ROWS)
    formula, ones = Formula(label_smoothing=0.1, z_loss=0.1), torch.ones(ROWS)
    values = linear_cross_entropy(hidden, weight, labels, formula, chunk_size=chunk_size)
    total = linear_cross_entropy_dot(hidden, weight, labels, ones, formula, chunk_size=chunk_size)
    expected = cross_entropy(hidden @ weight.T, labels, formula)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by_vocabulary", [False, True], ids=["tokens", "vocabulary"])
@pytest.mark.parametrize("counts", ["some", "none", "no rows"])
def test_nothing_to_count_leaves_gradients_of_zero(counts: str, by_vocabulary: bool) -> None:
    rows = 0 if counts == "no rows" else 3
    leaves = [torch.zeros(rows, WIDTH, requires_grad=True), torch.ones(5, WIDTH, requires_grad=True)]
    labels = torch.full((rows,), 2 if counts == "some" else -100)
    with going(Way("chunks", 4, by_vocabulary)):
        total = linear_cross_entropy_dot(leaves[0], leaves[1], labels, torch.ones(rows))
        torch.autograd.backward(total + linear_cross_entropy(leaves[0], leaves[1], labels).sum())
    assert total.item() == pytest.approx(3 * torch.tensor(5.0).log().item() if counts == "some" else 0.0)
    assert [gradient_of(leaf).shape for leaf in leaves] == [leaf.shape for leaf in leaves]
    assert all((gradient_of(leaf) == 0).all() for leaf in leaves)
