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
    ppo,
    sampled,
)
from tensafe.training.losses import LossConfigError, resolve_loss


def formula_of(low: float, high: float, dual: float | None = None) -> Any:
    return lambda logp, log_ratio, advantage: ppo(math.exp(log_ratio), advantage, low, high, dual)


@given(sampled(), corrections(), st.sampled_from(MODES), st.sampled_from([None, 1.5]))
def test_it_is_the_formula(drawn: Sampled, common: dict[str, Any], mode: str, dual: float | None) -> None:
    kwargs = {"epsilon_low": 0.1, "epsilon_high": 0.4, "dual_clip": dual}
    check("gspo", drawn, formula_of(0.1, 0.4, dual), mode, by_sequence=True, common=common, own=kwargs)


@given(sampled())
def test_its_own_reduction_and_bounds(drawn: Sampled) -> None:
    value, _ = expected(drawn, formula_of(3e-4, 4e-4), "sequence_mean", by_sequence=True)
    loss = resolve_loss("gspo")(drawn.outputs, drawn.batch)["loss"]
    torch.testing.assert_close(loss, value, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    check_that_masked_tokens_have_no_effect("gspo", drawn, junk)


def sequence(*ratios: float, advantage: float = 1.0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One sequence, and a token that does not count."""
    log_ratios = torch.tensor([[*map(math.log, ratios), 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * len(ratios) + [False]])
    batch = {"old_logps": -log_ratios, "advantages": torch.tensor([advantage], dtype=torch.float64), "mask": mask}
    return {"logps": torch.zeros_like(log_ratios)}, batch


@pytest.mark.parametrize(
    ("ratios", "advantage", "kwargs", "value", "slope"),
    [
        pytest.param((2.0, 0.5), 1.0, {}, -1.0, -0.5, id="the ratios cancel"),
        pytest.param((4.0, 1.0), 1.0, {"epsilon_high": 2.0}, -2.0, -1.0, id="geometric mean"),
        pytest.param((4.0, 1.0), 1.0, {}, -1.0004, 0.0, id="held above"),
        pytest.param((0.25, 1.0), -1.0, {}, 0.9997, 0.0, id="held below"),
        pytest.param((4.0, 1.0), -1.0, {}, 2.0, 1.0, id="a worse sequence that has risen"),
        pytest.param((16.0, 1.0), -1.0, {"dual_clip": 3.0}, 3.0, 0.0, id="held by the dual clip"),
        pytest.param((2.0, 0.5), 1.0, {"reduction": "sequence_sum"}, -2.0, -1.0, id="times its length"),
        pytest.param((2.0,), 1.0, {"epsilon_high": 3.0}, -2.0, -2.0, id="one token"),
    ],
)
def test_a_sequence_by_hand(
    ratios: tuple[float, ...], advantage: float, kwargs: dict[str, Any], value: float, slope: float
) -> None:
    loss, gradients = loss_and_gradients(resolve_loss("gspo", **kwargs), *sequence(*ratios, advantage=advantage))
    assert loss.item() == pytest.approx(value, rel=1e-12)
    assert gradients["logps"][0].tolist() == pytest.approx([slope] * len(ratios) + [0.0], rel=1e-12)


def test_every_token_has_the_value_of_its_sequence() -> None:
    values = resolve_loss("gspo", reduction="none", epsilon_high=2.0)(*sequence(4.0, 1.0))["loss"]
    assert values[0].tolist() == pytest.approx([-2.0, -2.0, 0.0])


def test_the_ratio_among_the_metrics_is_that_of_the_sequence() -> None:
    metrics = resolve_loss("gspo")(*sequence(4.0, 1.0))["metrics"]
    assert [float(metrics[name]) for name in ("ratio_max", "ratio_min", "clip_fraction")] == pytest.approx([2, 2, 1])


def test_a_bound_out_of_range_is_refused() -> None:
    with pytest.raises(LossConfigError, match=r"^gspo: dual_clip: must be greater than 1 \+ epsilon_high = 1.5"):
        resolve_loss("gspo", dual_clip=1.5, epsilon_high=0.5)
