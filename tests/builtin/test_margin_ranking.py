import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, margin_ranking, reduced
from strategies import twins
from tensafe.training.losses import LossConfigError, resolve_loss

Pair = tuple[Tensor, Tensor]


def loss_of(chosen: Any, rejected: Any, **kwargs: Any) -> Tensor:
    scores = {"chosen_scores": torch.as_tensor(chosen), "rejected_scores": torch.as_tensor(rejected)}
    return resolve_loss("margin_ranking", **kwargs)(scores, {})["loss"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "kwargs", "expected"),
    [
        pytest.param([3.0], [1.0], {}, 0.0, id="apart"),
        pytest.param([1.0], [3.0], {}, 3.0, id="the wrong way"),
        pytest.param([1.5], [1.0], {}, 0.5, id="within the margin"),
        pytest.param([2.0], [1.0], {}, 0.0, id="by the margin"),
        pytest.param([1.0], [1.0], {}, 1.0, id="a tie"),
        pytest.param([1.0], [1.0], {"margin": 0.0}, 0.0, id="a tie without a margin"),
        pytest.param([1.0], [1.5], {"margin": 0}, 0.5, id="only the order"),
        pytest.param([3.0, 0.0], [1.0, 0.5], {}, 0.75, id="mean"),
        pytest.param([3.0, 0.0], [1.0, 0.5], {"reduction": "sum"}, 1.5, id="sum"),
        pytest.param([[3.0, 0.0]], [[1.0, 0.5]], {}, 0.75, id="two axes"),
        pytest.param(1.0, 3.0, {}, 3.0, id="no axis"),
        pytest.param([], [], {}, 0.0, id="no pair"),
    ],
)
def test_a_loss_by_hand(chosen: Any, rejected: Any, kwargs: Any, expected: float) -> None:
    assert loss_of(chosen, rejected, **kwargs) == expected


@given(twins(), st.floats(0, 20), st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(pair: Pair, margin: float, mode: Any) -> None:
    expected = reduced(elements(margin_ranking(*pair, margin=margin)), mode)
    assert loss_of(*pair, margin=margin, reduction=mode).item() == pytest.approx(expected, rel=1e-12)


@given(twins(), st.floats(0, 20))
def test_none_gives_one_value_per_pair(pair: Pair, margin: float) -> None:
    loss = loss_of(*pair, margin=margin, reduction="none")
    expected = torch.tensor(margin_ranking(*pair, margin=margin), dtype=torch.float64).reshape(pair[0].shape)
    torch.testing.assert_close(loss, expected)
    assert (loss >= 0).all()


@given(twins())
def test_accuracy_is_the_share_in_the_right_order(pair: Pair) -> None:
    chosen, rejected = pair
    metrics = resolve_loss("margin_ranking")({"chosen_scores": chosen, "rejected_scores": rejected}, {})["metrics"]
    right = [c > r for c, r in zip(chosen.reshape(-1).tolist(), rejected.reshape(-1).tolist(), strict=True)]
    assert list(metrics) == ["accuracy"]
    assert float(metrics["accuracy"]) == pytest.approx(sum(right) / max(len(right), 1))


def test_a_tie_is_not_in_the_right_order() -> None:
    scores = {"chosen_scores": torch.tensor([1.0, 2.0]), "rejected_scores": torch.tensor([1.0, 1.0])}
    assert resolve_loss("margin_ranking")(scores, {})["metrics"]["accuracy"] == 0.5


def test_the_gradient_pushes_the_pair_apart_and_stops_at_the_margin() -> None:
    scores = {"chosen_scores": torch.tensor([0.0, 5.0, 0.5]), "rejected_scores": torch.tensor([1.0, 1.0, 0.0])}
    _, gradients = loss_and_gradients(resolve_loss("margin_ranking", reduction="sum"), scores)
    assert gradients["chosen_scores"].tolist() == [-1.0, 0.0, -1.0]
    assert gradients["rejected_scores"].tolist() == [1.0, 0.0, 1.0]


@given(twins(), st.floats(-100, 100))
def test_only_the_difference_matters(pair: Pair, constant: float) -> None:
    chosen, rejected = pair
    torch.testing.assert_close(loss_of(chosen + constant, rejected + constant), loss_of(chosen, rejected))


@given(twins())
def test_a_huge_margin_makes_it_linear(pair: Pair) -> None:
    chosen, rejected = pair
    expected = 1e3 - (chosen - rejected)
    torch.testing.assert_close(loss_of(chosen, rejected, margin=1e3, reduction="none"), expected)


@given(twins(least=1))
def test_the_wrong_order_costs_more_than_the_right_one(pair: Pair) -> None:
    low, high = torch.minimum(*pair), torch.maximum(*pair)
    right, wrong = (loss_of(a, b, reduction="none") for a, b in ((high, low), (low, high)))
    assert (right <= wrong).all()
    assert (right < wrong)[high - low > 1e-9].all()


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (math.inf, 0.0, 0.0),
        (0.0, math.inf, math.inf),
        (-math.inf, 0.0, math.inf),
        (math.inf, math.inf, math.nan),
        (math.nan, 0.0, math.nan),
    ],
)
def test_what_is_not_finite_is_passed_on(chosen: float, rejected: float, expected: float) -> None:
    assert loss_of([chosen], [rejected]).item() == pytest.approx(expected, nan_ok=True)


def test_the_names_of_the_public_tensafe_are_found_too() -> None:
    outputs = {"logits_chosen": torch.tensor([1.0]), "logits_rejected": torch.tensor([3.0])}
    assert resolve_loss("margin_ranking")(outputs, {})["loss"] == 3.0


@pytest.mark.parametrize("margin", [-1.0, math.nan, math.inf, True, "1", None, torch.tensor(1.0)], ids=str)
def test_a_margin_out_of_range_is_refused(margin: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^margin_ranking: margin: "):
        resolve_loss("margin_ranking", margin=margin)
