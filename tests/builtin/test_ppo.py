import math
from functools import partial
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
    one_token,
    ppo,
    sampled,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss
from tensafe.training.losses.adapter import TypedLoss

LN2 = math.log(2)


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "kwargs", "expected", "slope"),
    [
        pytest.param(0.0, 1.0, {}, -1.0, -1.0, id="on policy"),
        pytest.param(LN2, 1.0, {}, -1.2, 0.0, id="held above"),
        pytest.param(LN2, 1.0, {"epsilon_high": 1.5}, -2.0, -2.0, id="a wide bound"),
        pytest.param(LN2, -1.0, {}, 2.0, 2.0, id="a worse token that has risen"),
        pytest.param(-LN2, -1.0, {}, 0.8, 0.0, id="held below"),
        pytest.param(-LN2, -1.0, {"epsilon_low": 0.6}, 0.5, 0.5, id="a low bound"),
        pytest.param(-LN2, 1.0, {}, -0.5, -0.5, id="a better token that has fallen"),
        pytest.param(3 * LN2, -1.0, {"dual_clip": 3.0}, 3.0, 0.0, id="held by the dual clip"),
        pytest.param(3 * LN2, 1.0, {"dual_clip": 3.0}, -1.2, 0.0, id="a dual clip is for worse tokens"),
        pytest.param(LN2, -1.0, {"dual_clip": 3.0}, 2.0, 2.0, id="below the dual clip"),
        pytest.param(LN2, 0.0, {}, 0.0, 0.0, id="no advantage"),
        pytest.param(500.0, 1.0, {}, -1.2, 0.0, id="a ratio that overflows"),
        pytest.param(-500.0, -1.0, {}, 0.8, 0.0, id="a ratio that underflows"),
        pytest.param(500.0, -1.0, {}, math.exp(20), 0.0, id="above e^20"),
    ],
)
def test_a_token_by_hand(
    log_ratio: float, advantage: float, kwargs: dict[str, Any], expected: float, slope: float
) -> None:
    outputs, batch = one_token(-1.0, -1.0 - log_ratio, advantage)
    loss, gradients = loss_and_gradients(resolve_loss("ppo", **kwargs), outputs, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert gradients["logps"].item() == pytest.approx(slope, rel=1e-12)


@given(
    sampled(),
    corrections(),
    st.sampled_from(MODES),
    st.sampled_from([0.0, 0.2, 0.9]),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([None, 1.5, 10.0]),
)
def test_it_is_the_formula(
    drawn: Sampled, common: dict[str, Any], mode: str, low: float, high: float, dual: float | None
) -> None:
    def formula(logp: float, log_ratio: float, advantage: float) -> tuple[float, float]:
        return ppo(math.exp(log_ratio), advantage, low, high, dual)

    kwargs = {"epsilon_low": low, "epsilon_high": high, "dual_clip": dual}
    check("ppo", drawn, formula, mode, common=common, own=kwargs)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("ppo", drawn, junk, dual_clip=4.0)


def test_one_advantage_per_sequence_is_that_of_all_its_tokens() -> None:
    drawn = _two_sequences()
    wide = drawn._replace(advantages=drawn.per_token.clone())
    loss_fn = resolve_loss("ppo")
    assert torch.equal(*(loss_fn(one.outputs, one.batch)["loss"] for one in (drawn, wide)))


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 3, 1), (3, 2), (3,), ()], ids=str)
def test_advantages_are_never_broadcast(shape: tuple[int, ...]) -> None:
    drawn = _two_sequences()
    with pytest.raises(LossInputError, match=r"^ppo: 'advantages' must be float\[batch") as caught:
        resolve_loss("ppo")(drawn.outputs, {**drawn.batch, "advantages": torch.zeros(shape)})
    assert str(caught.value).count("nothing is broadcast") <= 1  # its cure is said once


def test_a_wrong_rank_names_both_shapes() -> None:
    drawn = _two_sequences()
    parts = r"float\[batch\] or float\[batch seq\], that is \[2\] or \[2, 3\] \(set by 'logps'\); got \[2, 1\]"
    with pytest.raises(LossInputError, match=parts):
        resolve_loss("ppo")(drawn.outputs, {**drawn.batch, "advantages": torch.zeros(2, 1)})


@pytest.mark.parametrize("per_token", [False, True])
def test_advantages_of_either_rank_go_the_fast_way(monkeypatch: pytest.MonkeyPatch, per_token: bool) -> None:
    drawn = _two_sequences()
    if per_token:
        drawn = drawn._replace(advantages=drawn.per_token.clone())
    loss_fn = resolve_loss("ppo", kl_coef=0.1)
    monkeypatch.setattr(TypedLoss, "_slowly", None)
    assert loss_fn(drawn.outputs, drawn.batch)["loss"].isfinite()


def test_without_old_logps_the_policy_is_the_one_that_sampled() -> None:
    drawn = _two_sequences()
    batch = {name: tensor for name, tensor in drawn.batch.items() if name != "old_logps"}
    loss, gradients = loss_and_gradients(resolve_loss("ppo", reduction="sum"), drawn.outputs, batch)
    weighted = torch.where(drawn.mask, -drawn.per_token, 0.0)
    torch.testing.assert_close(loss, weighted.sum())
    torch.testing.assert_close(gradients["logps"], weighted)
    metrics = resolve_loss("ppo")(drawn.outputs, batch)["metrics"]
    assert {name: float(metric) for name, metric in metrics.items()} == {
        "approx_kl": 0.0,
        "ratio_max": 1.0,
        "ratio_min": 1.0,
        "clip_fraction": 0.0,
    }


@pytest.mark.parametrize("name", ["advantages", "old_logps", "ref_logps", "rollout_logps"])
def test_only_logps_learn(name: str) -> None:
    drawn = _two_sequences()
    leaf = getattr(drawn, name).clone().requires_grad_()
    logps = drawn.logps.clone().requires_grad_()
    loss_fn = resolve_loss("ppo", kl_coef=0.1, rollout_ratio_max=2.0)
    torch.autograd.backward(loss_fn({"logps": logps}, {**drawn.batch, name: leaf})["loss"])
    assert leaf.grad is None
    assert logps.grad is not None


def test_metrics_by_hand() -> None:
    ratios = torch.tensor([[2.0, 1.0, 0.25, 9.0], [0.5, 4.0, 1.0, 9.0]], dtype=torch.float64)
    outputs = {"logps": ratios.log() - 3}
    batch = {
        "old_logps": torch.full((2, 4), -3.0, dtype=torch.float64),
        "advantages": torch.tensor([1.0, -1.0]),
        "mask": torch.tensor([[True, True, True, False]] * 2),
        "entropies": torch.tensor([[1.0, 2.0, 3.0, 99.0], [4.0, 5.0, 6.0, math.nan]]),
        "ref_logps": outputs["logps"] - 0.5,
    }
    metrics = resolve_loss("ppo", kl_coef=0.1, kl_estimator="k2")(outputs, batch)["metrics"]
    found = {name: float(metric) for name, metric in metrics.items()}
    divergence = sum(r - 1 - math.log(r) for r in (2.0, 1.0, 0.25, 0.5, 4.0, 1.0)) / 6
    assert found == pytest.approx(
        # 2 is held above and 0.5 below; 0.25 with A > 0 and 4 with A < 0 are not held
        {
            "approx_kl": divergence,
            "ratio_max": 4.0,
            "ratio_min": 0.25,
            "clip_fraction": 2 / 6,
            "kl": 0.125,
            "entropy": 3.5,
        },
        rel=1e-12,
    )
    bounded = resolve_loss("ppo", dual_clip=3.0)(outputs, batch)["metrics"]
    assert float(bounded["clip_fraction"]) == pytest.approx(3 / 6)
    assert resolve_loss("ppo", metrics=False)(outputs, batch)["metrics"] == {}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epsilon_low": 1.0}, "epsilon_low: "),
        ({"epsilon_low": -0.1}, "epsilon_low: "),
        ({"epsilon_high": -0.1}, "epsilon_high: "),
        ({"dual_clip": 1.0}, "dual_clip: "),
        ({"dual_clip": 1.2}, r"dual_clip: must be greater than 1 \+ epsilon_high = 1.2; got 1.2"),
        ({"dual_clip": 1.5, "epsilon_high": 0.6}, r"dual_clip: must be greater than 1 \+ epsilon_high = 1.6"),
        ({"kl_coef": -0.1}, "kl_coef: "),
        ({"kl_coef": math.nan}, "kl_coef: "),
        ({"kl_estimator": "k4"}, "kl_estimator: "),
        ({"rollout_ratio_max": 0.0}, "rollout_ratio_max: "),
        ({"kl_rollout_weighted": 1}, "kl_rollout_weighted: "),
    ],
)
def test_kwargs_out_of_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(LossConfigError, match=rf"^ppo: {message}"):
        resolve_loss("ppo", **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "missing"),
    [({"kl_coef": 0.1}, "ref_logps"), ({"rollout_ratio_max": 2.0}, "rollout_logps"), ({}, None)],
)
def test_what_a_kwarg_needs_must_be_given(kwargs: dict[str, Any], missing: str | None) -> None:
    outputs, batch = one_token(-1.0, -1.0, 1.0)
    call = partial(resolve_loss("ppo", **kwargs), outputs, batch)
    if missing is None:
        assert call()["loss"] == -1.0
    else:
        with pytest.raises(LossInputError, match=f"^ppo: '{missing}' must be given"):
            call()


def test_what_no_kwarg_asks_for_makes_no_difference() -> None:
    drawn = _two_sequences()
    without = {name: drawn.batch[name] for name in ("advantages", "mask", "old_logps")}
    loss_fn = resolve_loss("ppo")
    assert loss_fn(drawn.outputs, without)["loss"] == loss_fn(drawn.outputs, drawn.batch)["loss"]


def test_k1_in_a_loss_warns_where_it_weighs_anything() -> None:
    with pytest.warns(UserWarning, match="k1 in a loss is zero on average.*use kl_estimator k3"):
        resolve_loss("ppo", kl_estimator="k1", kl_coef=0.1)
    resolve_loss("ppo", kl_estimator="k1")


def _two_sequences() -> Sampled:
    generator = torch.Generator().manual_seed(0)
    logps, old, ref, rollout = (-torch.rand(2, 3, generator=generator, dtype=torch.float64) for _ in range(4))
    advantages = torch.randn(2, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    return Sampled(logps, advantages, mask, old, ref, rollout)
