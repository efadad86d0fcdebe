import math

import pytest
import torch
from hypothesis import given
from torch import Tensor

from strategies import tensors
from tensafe.training.losses.ops.similarity import unit


@given(tensors((3, 4)))
def test_unit_rows_have_length_1_and_their_direction(rows: Tensor) -> None:
    scaled = unit(rows)
    for row, result in zip(rows.tolist(), scaled.tolist(), strict=True):
        length = math.hypot(*row)
        expected = [number / length for number in row] if length else row
        assert result == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(tensors((3, 4), bound=4.0))
def test_the_gradient_is_that_of_the_quotient(rows: Tensor) -> None:
    rows = torch.where(rows.norm(dim=1, keepdim=True) < 0.1, 1.0, rows)
    leaf, other = (rows.clone().requires_grad_() for _ in range(2))
    upstream = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    found = torch.autograd.grad(unit(leaf), leaf, upstream)
    expected = torch.autograd.grad(other / other.norm(dim=1, keepdim=True), other, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["tiny", "max"])
def test_unit_is_exact_to_the_ends_of_the_range(scale: str, dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.5, 0.25], [-0.5, 0.0]], dtype=dtype) * getattr(torch.finfo(dtype), scale)
    rows = 4 * rows if scale == "tiny" else rows
    torch.testing.assert_close(unit(rows).norm(dim=1), torch.ones(2, dtype=dtype))


def test_unit_of_zero_is_zero_with_the_gradient_of_the_identity() -> None:
    rows = torch.zeros(2, 3, requires_grad=True)
    scaled = unit(rows)
    torch.autograd.backward(scaled, torch.ones(2, 3))
    assert torch.equal(scaled, torch.zeros(2, 3))
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.ones(2, 3))
