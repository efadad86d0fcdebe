import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import loss_and_gradients
from references.policy import (
    MODES,
    Sampled,
    check,
    check_that_masked_tokens_have_no_effect,
    corrections,
    expected,
    one_token,
    sampled,
)
from tensafe.training.losses import LossConfigError, resolve_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def formula_of(positive: float, negative: float) -> Any:
    def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
        ratio, tau = math.exp(log_ratio), positive if advantage > 0 else negative
        gate = sigmoid(tau * (ratio - 1))
        return -advantage * gate * 4 / tau, -advantage * 4 * gate * (1 - gate) * ratio

    return formula


@given(sampled(), corrections(), st.sampled_from(MODES), st.sampled_from([0.5, 2.0]), st.sampled_from([1.0, 3.0]))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: str, positive: float, negative: float) -> None:
    kwargs = {"temperature_positive": positive, "temperature_negative": negative}
    check("sapo", drawn, formula_of(positive, negative), mode, common=common, own=kwargs)


@given(sampled())
def test_its_own_reduction_and_temperatures(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula_of(1.0, 1.05), "sequence_mean")
    loss = resolve_loss("sapo")(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("sapo", drawn, junk)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "kwargs", "value", "slope"),
    [
        pytest.param(0.0, 1.0, {}, -2.0, -1.0, id="on policy"),
        pytest.param(0.0, 1.0, {"temperature_positive": 4.0}, -0.5, -1.0, id="on policy, whatever the temperature"),
        pytest.param(0.0, -1.0, {"temperature_negative": 2.0}, 1.0, 1.0, id="a worse token"),
        pytest.param(math.log(2), 1.0, {}, -4 * sigmoid(1), -8 * sigmoid(1) * sigmoid(-1), id="risen"),
        pytest.param(500.0, 1.0, {}, -4.0, 0.0, id="a ratio that overflows"),
        pytest.param(-500.0, 1.0, {}, -4 * sigmoid(-1), 0.0, id="a ratio that underflows"),
    ],
)
def test_a_token_by_hand(
    log_ratio: float, advantage: float, kwargs: dict[str, Any], value: float, slope: float
) -> None:
    outputs, batch = one_token(-1.0, -1.0 - log_ratio, advantage)
    loss, gradients = loss_and_gradients(resolve_loss("sapo", **kwargs), outputs, batch)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert gradients["logps"].item() == pytest.approx(slope, rel=1e-12, abs=1e-100)


def test_the_further_a_ratio_has_moved_the_weaker_its_pull() -> None:
    pulls = []
    for ratio in (1.0, 1.5, 2.0, 4.0, 8.0):
        outputs, batch = one_token(-1.0, -1.0 - math.log(ratio), 1.0)
        _, gradients = loss_and_gradients(resolve_loss("sapo"), outputs, batch)
        pulls.append(-gradients["logps"].item() / ratio)
    assert pulls == sorted(pulls, reverse=True)
    assert pulls[-1] < 0.01


@pytest.mark.parametrize("name", ["temperature_positive", "temperature_negative"])
def test_a_temperature_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(LossConfigError, match=f"^sapo: {name}: "):
        resolve_loss("sapo", **{name: 0.0})
