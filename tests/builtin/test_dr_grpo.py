import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from references.policy import (
    MAX_LENGTH,
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

HIGH = 0.2


def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
    return ppo(math.exp(log_ratio), advantage, 0.2, HIGH)


@given(sampled(), corrections(), st.sampled_from(MODES))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: str) -> None:
    check("dr_grpo", drawn, formula, mode, common=common)


@given(sampled())
def test_its_own_reduction_is_sequence_sum_norm(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula, "sequence_sum_norm")
    loss = resolve_loss("dr_grpo", max_length=MAX_LENGTH)(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("dr_grpo", drawn, junk, max_length=MAX_LENGTH)


def test_the_constant_must_be_given() -> None:
    with pytest.raises(LossConfigError, match=r"^dr_grpo: max_length: .*required"):
        resolve_loss("dr_grpo")
    with pytest.raises(LossConfigError, match=r"^dr_grpo: max_length: "):
        resolve_loss("dr_grpo", max_length=0)
    with pytest.raises(LossConfigError, match=r"^dr_grpo: max_length: "):
        resolve_loss("dr_grpo", max_length=None)


@pytest.mark.parametrize(
    ("kwargs", "value"),
    [
        pytest.param({"max_length": 4}, (-1 + 3) / 4 / 2, id="a constant divides the sums"),
        pytest.param({"max_length": 8}, (-1 + 3) / 8 / 2, id="a longer one"),
        pytest.param({"max_length": 8, "reduction": "mean"}, 0.5, id="another reduction leaves it out"),
    ],
)
def test_a_loss_by_hand(kwargs: dict[str, Any], value: float) -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = {"advantages": torch.tensor([1.0, -1.0]), "mask": mask}
    assert resolve_loss("dr_grpo", **kwargs)({"logps": torch.zeros(2, 3)}, batch)["loss"].item() == value


def test_the_schema_asks_for_the_constant_and_nothing_more() -> None:
    from tensafe.training.losses.schema import loss_schema

    schema = loss_schema("dr_grpo")
    assert schema["required"] == ["max_length"]
    assert "allOf" not in schema
