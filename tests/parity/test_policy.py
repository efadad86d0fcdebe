"""Policy gradients against the functions of other libraries, where these can be called outside of a trainer."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor

from reference import loss_and_gradients
from tensafe.training.losses import resolve_loss
from tensafe.training.losses.advantages import group_advantages, leave_one_out_advantages

Record = Callable[[str, object], None]

LENGTHS = torch.tensor([5, 3, 6, 1])
MASK = torch.arange(6) < LENGTHS.unsqueeze(1)


def draws(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("logps", "old_logps", "ref_logps", "rollout_logps")
    made = {name: -2 * torch.rand(MASK.shape, generator=generator, dtype=torch.float64) for name in names}
    return {**made, "advantages": torch.randn(len(MASK), generator=generator, dtype=torch.float64), "mask": MASK}


def agree(name: str, drawn: dict[str, Tensor], theirs: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
    """Compare value and gradient in float64."""
    batch = {key: tensor for key, tensor in drawn.items() if key != "logps"}
    loss, gradients = loss_and_gradients(resolve_loss(name, **kwargs), {"logps": drawn["logps"]}, batch)
    leaf = drawn["logps"].clone().requires_grad_()
    expected = theirs(leaf)
    torch.autograd.backward(expected)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradients["logps"], leaf.grad, rtol=1e-7, atol=1e-9)


LIGER: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grpo": ("grpo", {}, {"loss_type": "grpo"}),
    "grpo bounds": (
        "grpo",
        {"epsilon_low": 0.1, "epsilon_high": 0.4, "dual_clip": 1.8},
        {"loss_type": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.4, "delta": 1.8},
    ),
    "grpo divergence": ("grpo", {"kl_coef": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
    "grpo by tokens": ("grpo", {"reduction": "mean"}, {"loss_type": "bnpo"}),
    "dapo": ("dapo", {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": ("dr_grpo", {"max_length": 9}, {"loss_type": "dr_grpo", "max_completion_length": 9}),
    "gspo": (
        "gspo",
        {},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "gspo wide": (
        "gspo",
        {"epsilon_low": 0.2, "epsilon_high": 0.2, "kl_coef": 0.1},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1},
    ),
    "luspo": (
        "gspo",
        {"epsilon_low": 0.2, "epsilon_high": 0.2, "reduction": "sequence_sum"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    ),
    "cispo": ("cispo", {}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "cispo low cap": ("cispo", {"ratio_max": 1.2}, {"loss_type": "cispo", "epsilon_high": 1.2}),
    "sapo": ("sapo", {}, {"loss_type": "sapo"}),
    "sapo divergence": (
        "sapo",
        {"temperature_positive": 3.0, "temperature_negative": 0.5, "kl_coef": 0.2},
        {"loss_type": "sapo", "sapo_temperature_pos": 3.0, "sapo_temperature_neg": 0.5, "beta": 0.2},
    ),
}


# liger's luspo broadcasts a weight per token to tokens that do not count, so that is not the same loss
@pytest.mark.parametrize(
    ("case", "corrected"), [*((case, False) for case in LIGER), *((case, True) for case in LIGER if case != "luspo")]
)
def test_liger(case: str, corrected: bool, record_property: Record) -> None:
    module = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss")
    record_property("liger-kernel", version("liger-kernel"))
    name, ours, theirs = LIGER[case]
    drawn = draws(len(case))
    weight = (drawn["old_logps"] - drawn["rollout_logps"]).exp().clamp(max=1.5) if corrected else None
    if corrected:
        ours = {**ours, "rollout_ratio_max": 1.5}

    def loss(logps: Tensor) -> Tensor:
        mask = drawn["mask"].double()
        kwargs = {
            "ref_per_token_logps": drawn["ref_logps"],
            "old_per_token_logps": drawn["old_logps"],
            "vllm_is_ratio": weight,
            "beta": 0.0,
            **theirs,
        }
        value: Tensor = module.LigerFusedLinearGRPOFunction.ppo_loss_fn(
            logps, mask, drawn["advantages"], mask, **kwargs
        )[0]
        return value

    agree(name, drawn, loss, **ours)


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_torchtune(epsilon: float, record_property: Record) -> None:
    loss_module = pytest.importorskip("torchtune.rlhf.loss")
    record_property("torchtune", version("torchtune"))
    drawn, targets = draws(1), draws(2)
    wide = drawn["advantages"].unsqueeze(1).expand(MASK.shape)
    peer = loss_module.PPOLoss(epsilon=epsilon, value_clip_range=epsilon, value_coeff=1.0)

    def policy(logps: Tensor) -> Tensor:
        values = targets["old_logps"].detach()
        total: Tensor = peer(drawn["old_logps"], logps, wide, values, values, values, MASK, MASK)[0]
        return total

    agree("ppo", drawn, policy, epsilon_low=epsilon, epsilon_high=epsilon)

    batch = {"returns": targets["ref_logps"], "old_values": targets["old_logps"], "mask": MASK}
    loss_fn = resolve_loss("value_clip", epsilon=epsilon)
    loss, gradients = loss_and_gradients(loss_fn, {"values": targets["logps"]}, batch)
    leaf, still = targets["logps"].clone().requires_grad_(), drawn["old_logps"]
    total = peer(still, still, 0 * wide, batch["old_values"], leaf, batch["returns"], MASK, MASK)[0]
    total.backward()
    torch.testing.assert_close(loss, total.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradients["values"], leaf.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("size", [2, 4])
def test_trl_advantages(size: int, record_property: Record) -> None:
    """TRL's own standard deviation in the formulas of its trainers, which are written out inside them."""
    utils = pytest.importorskip("trl.trainer.utils")
    record_property("trl", version("trl"))
    rewards = torch.randn(12, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    grouped = rewards.view(-1, size)
    centred = grouped - torch.nanmean(grouped, 1, keepdim=True)
    scaled = centred / (utils.nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, group_size=size), scaled.flatten())
    of_batch = centred / (utils.nanstd(rewards) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, group_size=size, normalise="batch"), of_batch.flatten())
    baselines = (grouped.sum(1, keepdim=True) - grouped) / (size - 1)
    torch.testing.assert_close(leave_one_out_advantages(rewards, group_size=size), (grouped - baselines).flatten())
