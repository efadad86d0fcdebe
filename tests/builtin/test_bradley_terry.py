import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import elements, loss_and_gradients, reduced
from references.rewards import bradley_terry
from references.slopes import slopes
from strategies import tensors
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

LN2 = math.log(2)
Pairs = tuple[Tensor, Tensor, Tensor]
kwargs_of_bradley_terry = st.fixed_dictionaries(
    {
        "margin": st.sampled_from([0.0, 0.5]),
        "center_rewards": st.sampled_from([None, 0.0, 0.01, 2.0]),
        "label_smoothing": st.sampled_from([0.0, 0.1, 0.49]),
    }
)


@st.composite
def pairs(draw: st.DrawFn) -> Pairs:
    """Chosen and rejected rewards, and a margin for each pair."""
    shape = (draw(st.integers(0, 4)),)
    return draw(tensors(shape)), draw(tensors(shape)), draw(tensors(shape)).abs()


def call(chosen: Any, rejected: Any, margins: Any = None, **kwargs: Any) -> Any:
    outputs = {"chosen_rewards": torch.as_tensor(chosen), "rejected_rewards": torch.as_tensor(rejected)}
    batch = {"margins": None if margins is None else torch.as_tensor(margins)}
    return resolve_loss("bradley_terry", **kwargs)(outputs, batch)


def loss_of(chosen: Any, rejected: Any, margins: Any = None, **kwargs: Any) -> Tensor:
    loss: Tensor = call(chosen, rejected, margins, **kwargs)["loss"]
    return loss


@pytest.mark.parametrize(
    ("chosen", "rejected", "margins", "kwargs", "expected"),
    [
        pytest.param([1.0], [1.0], None, {}, LN2, id="a tie"),
        pytest.param([math.log(3)], [0.0], None, {}, math.log(4 / 3), id="the right way"),
        pytest.param([0.0], [math.log(3)], None, {}, math.log(4), id="the wrong way"),
        pytest.param([2.0], [1.0], [1.0], {}, LN2, id="ahead by the margin of the pair"),
        pytest.param([2.0], [1.0], None, {"margin": 1}, LN2, id="ahead by the margin of all"),
        pytest.param([2.0], [1.0], [0.75], {"margin": 0.25}, LN2, id="margins add up"),
        pytest.param([1.0], [1.0], None, {"center_rewards": 0.01}, LN2 + 0.04, id="centred"),
        pytest.param([1.0], [-1.0], None, {"center_rewards": 5.0}, math.log1p(math.exp(-2)), id="at the centre"),
        pytest.param([math.log(3)], [0.0], None, {"label_smoothing": 0.25}, math.log(4) - 0.75 * math.log(3), id="eps"),
        pytest.param([0.0, math.log(3)], [0.0, 0.0], None, {}, math.log(8 / 3) / 2, id="mean"),
        pytest.param([0.0, math.log(3)], [0.0, 0.0], None, {"reduction": "sum"}, math.log(8 / 3), id="sum"),
        pytest.param([], [], None, {}, 0.0, id="no pair"),
        pytest.param([-1e4], [0.0], None, {}, 1e4, id="far wrong"),
        pytest.param([1e4], [0.0], None, {}, 0.0, id="far right"),
        pytest.param([1e4], [0.0], None, {"label_smoothing": 0.1}, 1e3, id="far too sure"),
    ],
)
def test_a_loss_by_hand(chosen: Any, rejected: Any, margins: Any, kwargs: Any, expected: float) -> None:
    chosen, rejected = (torch.tensor(side, dtype=torch.float64) for side in (chosen, rejected))
    margins = None if margins is None else torch.tensor(margins, dtype=torch.float64)
    assert loss_of(chosen, rejected, margins, **kwargs).item() == pytest.approx(expected, rel=1e-14)


@given(pairs(), st.booleans(), kwargs_of_bradley_terry, st.sampled_from(["sum", "mean"]))
def test_every_reduction_is_that_of_the_formula(drawn: Pairs, with_margins: bool, kwargs: Any, mode: str) -> None:
    chosen, rejected, margins = drawn
    batch = {"margins": margins} if with_margins else {}
    outputs = {"chosen_rewards": chosen, "rejected_rewards": rejected}
    loss, gradients = loss_and_gradients(resolve_loss("bradley_terry", reduction=mode, **kwargs), outputs, batch)

    def formula(c: list[float], r: list[float]) -> float:
        each = margins.tolist() if with_margins else [0.0] * len(c)
        values = [bradley_terry(*pair, **kwargs) for pair in zip(c, r, each, strict=True)]
        return reduced(elements(values), mode)

    c, r = chosen.tolist(), rejected.tolist()
    assert loss.item() == pytest.approx(formula(c, r), rel=1e-10)
    close: Any = {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(gradients["chosen_rewards"], slopes(lambda at: formula(at, r), chosen), **close)
    torch.testing.assert_close(gradients["rejected_rewards"], slopes(lambda at: formula(c, at), rejected), **close)


@given(pairs(), kwargs_of_bradley_terry)
def test_none_gives_one_value_per_pair(drawn: Pairs, kwargs: Any) -> None:
    loss = loss_of(*drawn, reduction="none", **kwargs)
    columns = zip(*(side.tolist() for side in drawn), strict=True)
    expected = [bradley_terry(*pair, **kwargs) for pair in columns]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


@given(pairs(), st.floats(-100, 100))
def test_only_the_difference_matters_without_centering(drawn: Pairs, constant: float) -> None:
    chosen, rejected, margins = drawn
    torch.testing.assert_close(loss_of(chosen + constant, rejected + constant, margins), loss_of(*drawn))


def test_smoothing_has_its_least_value_where_the_odds_are_those_of_the_labels() -> None:
    best = math.log(0.9 / 0.1)
    _, gradients = loss_and_gradients(
        resolve_loss("bradley_terry", label_smoothing=0.1),
        {"chosen_rewards": torch.tensor([best]), "rejected_rewards": torch.tensor([0.0])},
    )
    assert gradients["chosen_rewards"].item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("lead", [-1e4, 1e4, -3e38, 3e38])
def test_a_large_difference_has_a_finite_loss_and_gradient(lead: float) -> None:
    outputs = {"chosen_rewards": torch.tensor([lead]), "rejected_rewards": torch.tensor([0.0])}
    loss, gradients = loss_and_gradients(resolve_loss("bradley_terry"), outputs)
    assert loss.item() == (pytest.approx(-lead) if lead < 0 else 0.0)
    assert gradients["chosen_rewards"].item() == (-1.0 if lead < 0 else 0.0)


def test_metrics_leave_margins_aside() -> None:
    metrics = call([2.0, 1.0, 0.0], [1.0, 1.0, 3.0], [5.0, 5.0, 5.0], margin=1.0)["metrics"]
    expected = {"chosen_reward": 1.0, "rejected_reward": 5 / 3, "reward_margin": -2 / 3, "reward_accuracy": 1 / 3}
    assert {name: pytest.approx(float(value)) for name, value in metrics.items()} == expected
    assert call([2.0], [1.0], metrics=False)["metrics"] == {}


def test_a_head_with_an_axis_too_many_is_refused() -> None:
    with pytest.raises(LossInputError, match=r"^bradley_terry: 'chosen_rewards' must be float\[batch\]"):
        loss_of([[1.0], [2.0]], [[0.0], [0.0]])


@pytest.mark.parametrize(
    ("kwarg", "value"),
    [
        *(("margin", value) for value in (-1.0, math.nan, math.inf, True, None, [1.0])),
        *(("center_rewards", value) for value in (-0.01, math.nan, True, "0.01")),
        *(("label_smoothing", value) for value in (-0.1, 0.5, 1.0, math.nan, True, None)),
    ],
    ids=str,
)
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=f"^bradley_terry: {kwarg}: "):
        resolve_loss("bradley_terry", **{kwarg: value})
