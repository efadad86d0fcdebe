import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from references.policy import (
    MODES,
    Sampled,
    check,
    check_that_masked_tokens_have_no_effect,
    corrections,
    expected,
    ppo,
    sampled,
)
from tensafe.training.losses import LossConfigError, resolve_loss

HIGH = 0.28


def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
    return ppo(math.exp(log_ratio), advantage, 0.2, HIGH)


@given(sampled(), corrections(), st.sampled_from(MODES))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: str) -> None:
    check("dapo", drawn, formula, mode, common=common)


@given(sampled())
def test_its_own_reduction_is_mean(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula, "mean")
    loss = resolve_loss("dapo")(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("dapo", drawn, junk)


@pytest.mark.parametrize(
    ("ratio", "kwargs", "value"),
    [
        pytest.param(1.0, {}, 0.5, id="tokens weigh the same"),
        pytest.param(1.25, {}, (-1.25 + 3 * 1.25) / 4, id="within the higher bound"),
        pytest.param(2.0, {}, (-1.28 + 3 * 2.0) / 4, id="held above"),
        pytest.param(0.5, {}, (-0.5 + 3 * 0.8) / 4, id="held below"),
        pytest.param(2.0, {"epsilon_high": 0.2}, (-1.2 + 3 * 2.0) / 4, id="another bound"),
    ],
)
def test_a_loss_by_hand(ratio: float, kwargs: dict[str, Any], value: float) -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = {"old_logps": torch.zeros(2, 3), "advantages": torch.tensor([1.0, -1.0]), "mask": mask}
    outputs = {"logps": torch.full((2, 3), math.log(ratio))}
    assert resolve_loss("dapo", **kwargs)(outputs, batch)["loss"].item() == pytest.approx(value, abs=1e-6)


def test_the_tokens_of_a_whole_step_may_be_given() -> None:
    batch = {"advantages": torch.tensor([1.0]), "mask": torch.tensor([[True, True]]), "num_items_in_batch": 8}
    assert resolve_loss("dapo")({"logps": torch.zeros(1, 2)}, batch)["loss"].item() == -2 / 8


def test_a_bound_out_of_range_is_refused() -> None:
    with pytest.raises(LossConfigError, match=r"^dapo: epsilon_high: "):
        resolve_loss("dapo", epsilon_high=-0.1)
