import math
import statistics
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from strategies import tensors
from tensafe.training.losses import LossInputError
from tensafe.training.losses.advantages import group_advantages, leave_one_out_advantages

Scale = Literal["group", "batch", "none"]
SCALES: list[Scale] = ["group", "batch", "none"]
BOTH: list[Callable[..., Tensor]] = [group_advantages, leave_one_out_advantages]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rewards, and the group of each in any order."""
    groups = draw(st.lists(st.integers(-2, 2), max_size=8))
    return draw(tensors((len(groups),))), torch.tensor(groups, dtype=torch.int64)


def by_group(rewards: Tensor, groups: Tensor) -> list[list[float]]:
    """The rewards of the group of each completion."""
    pairs = list(zip(rewards.tolist(), groups.tolist(), strict=True))
    return [[reward for reward, other in pairs if other == group] for _, group in pairs]


def deviation(numbers: list[float]) -> float:
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


@given(grouped(), st.sampled_from(SCALES), st.sampled_from([1e-4, 0.1]))
def test_group_advantages_are_the_formula(drawn: tuple[Tensor, Tensor], scale: Scale, epsilon: float) -> None:
    rewards, groups = drawn
    expected = []
    for reward, members in zip(rewards.tolist(), by_group(*drawn), strict=True):
        sigma = {"group": deviation(members), "batch": deviation(rewards.tolist()), "none": 1.0 - epsilon}[scale]
        expected.append((reward - statistics.fmean(members)) / (sigma + epsilon))
    found = group_advantages(rewards, groups, normalise=scale, epsilon=epsilon)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@given(grouped())
def test_leave_one_out_advantages_are_the_formula(drawn: tuple[Tensor, Tensor]) -> None:
    expected = [
        reward - (math.fsum(members) - reward) / (len(members) - 1) if len(members) > 1 else 0.0
        for reward, members in zip(drawn[0].tolist(), by_group(*drawn), strict=True)
    ]
    found = leave_one_out_advantages(*drawn)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 4), st.integers(0, 3), st.sampled_from(BOTH), st.integers(0, 99))
def test_a_group_size_is_a_short_way_to_name_groups_in_a_row(
    size: int, count: int, advantages: Callable[..., Tensor], seed: int
) -> None:
    rewards = torch.randn(size * count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    named = advantages(rewards, torch.arange(count).repeat_interleave(size))
    torch.testing.assert_close(advantages(rewards, group_size=size), named)


@pytest.mark.parametrize(
    ("rewards", "kwargs", "expected"),
    [
        pytest.param([1, 0, 5, 5], {"group_size": 2, "normalise": "none"}, [0.5, -0.5, 0, 0], id="differences"),
        pytest.param([1.0, 3.0], {"group_size": 2, "epsilon": 1.0}, [-1 / (1 + 2**0.5), 1 / (1 + 2**0.5)], id="scaled"),
        pytest.param([True, False], {"group_size": 2, "normalise": "none"}, [0.5, -0.5], id="right or wrong"),
        pytest.param([7.0], {"group_size": 1}, [0.0], id="alone"),
        pytest.param([], {"group_size": 4}, [], id="nothing"),
        pytest.param([7.0], {"group_size": 1, "normalise": "batch"}, [0.0], id="alone in the batch"),
    ],
)
def test_group_advantages_by_hand(rewards: list[Any], kwargs: dict[str, Any], expected: list[float]) -> None:
    found = group_advantages(torch.tensor(rewards), **kwargs)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_leave_one_out_by_hand() -> None:
    found = leave_one_out_advantages(torch.tensor([1.0, 0.0, 0.0, 4.0]), torch.tensor([7, 7, 7, 0]))
    torch.testing.assert_close(found, torch.tensor([1.0, -0.5, -0.5, 0.0]))


@pytest.mark.parametrize("advantages", BOTH)
@pytest.mark.parametrize("size", [1, 3, 7])
@given(reward=st.floats(-1e6, 1e6, width=32))
def test_equal_rewards_give_exactly_zero(advantages: Callable[..., Tensor], size: int, reward: float) -> None:
    rewards = torch.full((size,), reward)  # the mean of 0.1, 0.1 and 0.1 is not 0.1
    for kwargs in ({"group_size": size}, {"groups": torch.zeros(size, dtype=torch.int64)}):
        assert (advantages(rewards, **kwargs) == 0).all()


@given(grouped(), st.sampled_from(BOTH))
def test_each_group_sums_to_zero(drawn: tuple[Tensor, Tensor], advantages: Callable[..., Tensor]) -> None:
    found = advantages(*drawn)
    sums = [math.fsum(found[drawn[1] == group].tolist()) for group in set(drawn[1].tolist())]
    assert sums == pytest.approx([0.0] * len(sums), abs=1e-7)


@pytest.mark.parametrize("advantages", BOTH)
def test_nan_stays_within_its_group(advantages: Callable[..., Tensor]) -> None:
    for kwargs in ({"group_size": 2}, {"groups": torch.tensor([0, 0, 1, 1])}):
        found = advantages(torch.tensor([1.0, math.nan, 1.0, 0.0]), **kwargs)
        assert found.isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_they_are_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    found = group_advantages(torch.tensor([1.0, 0.0], dtype=dtype), group_size=2)
    assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)


@pytest.mark.parametrize("advantages", BOTH)
@pytest.mark.parametrize(
    ("rewards", "kwargs", "message"),
    [
        (torch.zeros(4), {}, "give one of groups and group_size"),
        (torch.zeros(4), {"groups": torch.zeros(4), "group_size": 2}, "and not both"),
        (torch.zeros(4), {"group_size": 3}, "group_size must divide the 4 rewards; got 3"),
        (torch.zeros(4), {"group_size": 0}, "group_size must divide"),
        (torch.zeros(2, 2), {"group_size": 2}, r"rewards must be \[batch\]; got \[2, 2\]"),
        (torch.zeros(4), {"groups": torch.zeros(2)}, r"groups must be \[batch\], \[4\] like rewards; got \[2\]"),
    ],
)
def test_what_does_not_fit_is_refused(
    advantages: Callable[..., Tensor], rewards: Tensor, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(LossInputError, match=message):
        advantages(rewards, **kwargs)
