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

HIGH = 0.2


def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
    return ppo(math.exp(log_ratio), advantage, 0.2, HIGH)


@given(sampled(), corrections(), st.sampled_from(MODES))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: str) -> None:
    check("grpo", drawn, formula, mode, common=common)


@given(sampled())
def test_its_own_reduction_is_sequence_mean(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula, "sequence_mean")
    loss = resolve_loss("grpo")(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("grpo", drawn, junk)


def two_lengths(ratio: float) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A right answer of one token, and a wrong one of three."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    return {"logps": torch.full((2, 3), math.log(ratio))}, {
        "old_logps": torch.zeros(2, 3),
        "advantages": torch.tensor([1.0, -1.0]),
        "mask": mask,
    }


@pytest.mark.parametrize(
    ("ratio", "kwargs", "value"),
    [
        pytest.param(1.0, {}, 0.0, id="sequences weigh the same"),
        pytest.param(2.0, {}, (-1.2 + 2.0) / 2, id="held above"),
        pytest.param(0.5, {}, (-0.5 + 0.8) / 2, id="held below"),
        pytest.param(1.0, {"reduction": "mean"}, 0.5, id="tokens weigh the same"),
        pytest.param(2.0, {"epsilon_high": 0.5, "dual_clip": 1.75}, (-1.5 + 1.75) / 2, id="dual clip"),
    ],
)
def test_a_loss_by_hand(ratio: float, kwargs: dict[str, Any], value: float) -> None:
    assert resolve_loss("grpo", **kwargs)(*two_lengths(ratio))["loss"].item() == pytest.approx(value, abs=1e-6)


def test_a_sequence_without_tokens_is_none() -> None:
    outputs, batch = two_lengths(2.0)
    batch["mask"][1] = False
    assert resolve_loss("grpo")(outputs, batch)["loss"].item() == pytest.approx(-1.2)


def test_a_bound_out_of_range_is_refused() -> None:
    with pytest.raises(LossConfigError, match=r"^grpo: epsilon_low: "):
        resolve_loss("grpo", epsilon_low=1.0)


@pytest.mark.parametrize(
    "kwargs", [{}, {"rollout_ratio_max": 2.0}, {"kl_coef": 0.1}], ids=["neither", "no KL", "no weight"]
)
def test_a_weight_of_the_divergence_needs_both(kwargs: Any) -> None:
    with pytest.raises(LossConfigError, match="kl_rollout_weighted: has no effect"):
        resolve_loss("grpo", kl_rollout_weighted=True, **kwargs)
    assert resolve_loss("grpo", kl_rollout_weighted=True, rollout_ratio_max=2.0, kl_coef=0.1)
