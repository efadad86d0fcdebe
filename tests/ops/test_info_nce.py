import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.cases import Draws, Way, going, gradient_of, seeds, ways
from tensafe.training.losses.ops.info_nce import info_nce, info_nce_dot

every_way = pytest.mark.parametrize("way", ["chunks", "plain", "traced"])
symmetric_or_not = pytest.mark.parametrize("symmetric", [False, True])


@every_way
@symmetric_or_not
def test_by_hand(way: str, symmetric: bool) -> None:
    with going(Way(way)):
        values = info_nce(torch.eye(3), torch.eye(3), temperature=0.5, margin=0.25, symmetric=symmetric)
    expected = -math.log(math.exp(1.5) / (math.exp(1.5) + 2))
    assert values.tolist() == pytest.approx([expected] * 3)


@every_way
@symmetric_or_not
@pytest.mark.parametrize("count", [0, 1])
def test_without_a_negative_there_is_nothing_to_lose(way: str, symmetric: bool, count: int) -> None:
    a, b = (torch.full((count, 2), 3.0, requires_grad=True) for _ in range(2))
    with going(Way(way)):
        values = info_nce(a, b, temperature=0.1, margin=0.5, symmetric=symmetric)
        total = info_nce_dot(a, b, torch.ones(count), temperature=0.1, margin=0.5, symmetric=symmetric)
        torch.autograd.backward(values.sum() + total)
    assert values.tolist() == [0.0] * count
    assert total == 0
    assert all((gradient_of(side) == 0).all() for side in (a, b))


@given(seeds, ways(torch.float64), st.integers(1, 6))
def test_both_directions(draws: Draws, way: Way, count: int) -> None:
    a, b = draws.normal(count, 3), draws.normal(count, 3)
    with going(way):
        forth, back = info_nce(a, b, temperature=0.3), info_nce(b, a, temperature=0.3)
        both = info_nce(a, b, temperature=0.3, symmetric=True)
    torch.testing.assert_close(both, (forth + back) / 2)


@every_way
@symmetric_or_not
def test_the_same_tensor_on_both_sides_gets_both_gradients(way: str, symmetric: bool) -> None:
    whole = torch.linspace(-1, 1, 12).view(4, 3).sin()
    x, a, b = (whole.clone().requires_grad_() for _ in range(3))
    with going(Way(way)):
        torch.autograd.backward(info_nce_dot(x, x, torch.ones(4), temperature=0.5, symmetric=symmetric))
        torch.autograd.backward(info_nce_dot(a, b, torch.ones(4), temperature=0.5, symmetric=symmetric))
    torch.testing.assert_close(gradient_of(x), gradient_of(a) + gradient_of(b))


@every_way
@symmetric_or_not
def test_further_negatives_by_hand(way: str, symmetric: bool) -> None:
    """Two pairs at right angles, and one more candidate, which is the first a itself."""
    a = torch.eye(2)
    with going(Way(way)):
        values = info_nce(a, torch.cat([a, a[:1]]), temperature=1.0, symmetric=symmetric)
    back = math.log(math.e + 1) - 1
    forth = [math.log(2 * math.e + 1) - 1, math.log(math.e + 2) - 1]
    assert values.tolist() == pytest.approx([(each + back) / 2 if symmetric else each for each in forth])


@every_way
def test_one_pair_may_have_negatives_of_its_own(way: str) -> None:
    a, b = torch.ones(1, 2), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    with going(Way(way)):
        (value,) = info_nce(a, b, temperature=1.0).tolist()
    assert value == pytest.approx(math.log(math.exp(2) + math.exp(1) + 1) - 2)


@every_way
def test_the_way_back_ignores_further_negatives(way: str) -> None:
    draws = Draws(0)
    a, b, more = draws.normal(5, 3), draws.normal(5, 3), draws.normal(4, 3)
    with going(Way(way)):
        both = info_nce(a, torch.cat([b, more]), temperature=0.4, symmetric=True)
        forth, back = info_nce(a, torch.cat([b, more]), temperature=0.4), info_nce(b, a, temperature=0.4)
    torch.testing.assert_close(both, (forth + back) / 2)
