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
    sampled,
)
from tensafe.training.losses import LossConfigError, resolve_loss


def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
    return -advantage * logp, -advantage


@given(sampled(), corrections(), st.sampled_from(MODES))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: Any) -> None:
    check("reinforce", drawn, formula, mode, common=common)


@given(sampled())
def test_its_own_reduction_is_sequence_sum(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula, "sequence_sum")
    loss = resolve_loss("reinforce")(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("reinforce", drawn, junk)


@pytest.mark.parametrize(
    ("kwargs", "value"),
    [
        pytest.param({}, (2 * 1.5 - 1 * 0.5) / 2, id="sums of sequences"),
        pytest.param({"reduction": "mean"}, (2 * 1.5 - 1 * 0.5) / 3, id="tokens"),
        pytest.param({"reduction": "sequence_mean"}, (2 * 0.75 - 1 * 0.5) / 2, id="means of sequences"),
    ],
)
def test_a_loss_by_hand(kwargs: dict[str, Any], value: float) -> None:
    outputs = {"logps": torch.tensor([[-0.5, -1.0], [-0.5, -9.0]])}
    batch = {"advantages": torch.tensor([2.0, -1.0]), "mask": torch.tensor([[True, True], [True, False]])}
    assert resolve_loss("reinforce", **kwargs)(outputs, batch)["loss"].item() == pytest.approx(value)


def test_its_gradient_is_that_of_the_expected_reward() -> None:
    # two tokens of three kinds, all nine completions, each as often as the policy draws it
    scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rewards = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = scores.clone().requires_grad_()
    first, second = torch.log_softmax(logits, 1)
    (exact,) = torch.autograd.grad((first.exp().unsqueeze(1) * second.exp() * rewards).sum(), logits)
    logits = scores.clone().requires_grad_()
    first, second = torch.log_softmax(logits, 1)
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    logps = torch.stack([first[grid[:, 0]], second[grid[:, 1]]], 1)
    chances = logps.detach().sum(1).exp()
    batch = {"advantages": 9 * chances * rewards.flatten(), "mask": torch.ones(9, 2, dtype=torch.bool)}
    torch.autograd.backward(resolve_loss("reinforce")({"logps": logps}, batch)["loss"])
    assert logits.grad is not None
    torch.testing.assert_close(-logits.grad, exact)


def test_an_older_policy_is_corrected_for_by_its_rollout_logps() -> None:
    outputs = {"logps": torch.tensor([[-1.0, -1.0]], dtype=torch.float64)}
    rollout = torch.tensor([[-1.0 - math.log(2), -1.0 - math.log(8)]], dtype=torch.float64)
    batch = {"advantages": torch.ones(1), "mask": torch.ones(1, 2, dtype=torch.bool), "rollout_logps": rollout}
    _, gradients = loss_and_gradients(resolve_loss("reinforce", rollout_ratio_max=4.0), outputs, batch)
    assert gradients["logps"][0].tolist() == pytest.approx([-2.0, -4.0])


def test_it_has_no_clip() -> None:
    outputs, mask = {"logps": torch.tensor([[-1.0]])}, torch.tensor([[True]])
    batch = {"advantages": torch.ones(1), "mask": mask, "old_logps": torch.tensor([[-2.0]])}
    metrics = resolve_loss("reinforce")(outputs, batch)["metrics"]
    assert sorted(metrics) == ["approx_kl", "ratio_max", "ratio_min"]
    assert float(metrics["ratio_max"]) == pytest.approx(math.e)
    with pytest.raises(LossConfigError, match="unknown argument of reinforce; epsilon_low is a kwarg of"):
        resolve_loss("reinforce", epsilon_low=0.2)  # type: ignore[arg-type]
