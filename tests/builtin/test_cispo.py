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


def formula_of(low: float, high: float) -> Any:
    def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
        weight = min(max(math.exp(log_ratio), low), high)
        return -weight * advantage * logp, -weight * advantage

    return formula


@given(sampled(), corrections(), st.sampled_from(MODES), st.sampled_from([0.0, 0.5]), st.sampled_from([0.7, 2.0]))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: str, low: float, high: float) -> None:
    check("cispo", drawn, formula_of(low, high), mode, common=common, own={"ratio_min": low, "ratio_max": high})


@given(sampled())
def test_its_own_reduction_and_bounds(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula_of(0.0, 5.0), "mean")
    loss = resolve_loss("cispo")(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("cispo", drawn, junk)


@pytest.mark.parametrize(
    ("ratio", "advantage", "kwargs", "weight", "clipped"),
    [
        pytest.param(1.0, 1.0, {}, 1.0, 0.0, id="on policy"),
        pytest.param(4.0, 1.0, {}, 4.0, 0.0, id="below the cap"),
        pytest.param(8.0, 1.0, {}, 5.0, 1.0, id="capped"),
        pytest.param(8.0, -1.0, {}, 5.0, 1.0, id="capped whatever the sign"),
        pytest.param(0.25, 1.0, {"ratio_min": 0.5}, 0.5, 1.0, id="floored"),
        pytest.param(0.25, 1.0, {}, 0.25, 0.0, id="no floor"),
        pytest.param(8.0, 1.0, {"ratio_max": 1.2}, 1.2, 1.0, id="the cap is absolute"),
        pytest.param(1e300, 1.0, {}, 5.0, 1.0, id="a ratio that overflows"),
    ],
)
def test_a_token_by_hand(ratio: float, advantage: float, kwargs: dict[str, Any], weight: float, clipped: float) -> None:
    outputs, batch = one_token(-2.0, -2.0 - math.log(ratio), advantage)
    loss_fn = resolve_loss("cispo", **kwargs)
    loss, gradients = loss_and_gradients(loss_fn, outputs, batch)
    assert loss.item() == pytest.approx(2 * weight * advantage)
    assert gradients["logps"].item() == pytest.approx(-weight * advantage)
    assert loss_fn(outputs, batch)["metrics"]["clip_fraction"] == clipped


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ratio_max": 0.0}, "ratio_max: "),
        ({"ratio_min": -0.1}, "ratio_min: "),
        ({"ratio_min": 6}, "ratio_min: must be at most ratio_max = 5; got 6"),
    ],
)
def test_kwargs_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(LossConfigError, match=f"^cispo: {message}"):
        resolve_loss("cispo", **kwargs)
