import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import loss_and_gradients
from references.preference import BAD_BETAS, BETAS, EVEN, MODES, Batch, Pair, batches, check, each, f_dpo, loss_of
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.5}, math.log1p(math.exp(-1)), id="reverse KL"),
        pytest.param(
            EVEN, {"beta": 0.5, "divergence": "forward_kl"}, math.log1p(math.exp(-math.sinh(1))), id="forward KL"
        ),
        pytest.param(EVEN, {"beta": 1.0, "divergence": "js"}, math.log1p(math.exp(-1)), id="Jensen-Shannon"),
        pytest.param(EVEN, {"beta": 0.5, "divergence": "alpha"}, math.log1p(math.exp(-2 * math.sinh(0.5))), id="alpha"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("f_dpo", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(
    batches(bound=3.0),
    BETAS,
    st.sampled_from(["reverse_kl", "forward_kl", "js", "alpha"]),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    MODES,
)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, divergence: Any, alpha: float, mode: Any
) -> None:
    alpha = alpha if divergence == "alpha" else 0.5
    check("f_dpo", each(f_dpo), drawn, mode, beta=beta, divergence=divergence, alpha=alpha)


@pytest.mark.parametrize(("alpha", "same"), [(1.0, "reverse_kl"), (0.0, "forward_kl")])
def test_the_ends_of_alpha_are_the_two_kl_divergences(alpha: float, same: str) -> None:
    pair = Pair(-3.0, -5.0, -4.0, -4.5)
    by_alpha = loss_of("f_dpo", pair, divergence="alpha", alpha=alpha)
    torch.testing.assert_close(by_alpha, loss_of("f_dpo", pair, divergence=same))


def test_near_its_end_alpha_is_near_the_reverse_kl() -> None:
    near = loss_of("f_dpo", EVEN, divergence="alpha", alpha=1 - 1e-9)
    torch.testing.assert_close(near, loss_of("dpo", EVEN), rtol=1e-8, atol=0)


def test_the_rewards_are_those_of_the_divergence() -> None:
    drawn = Batch([EVEN], lengths=False)
    metrics = resolve_loss("f_dpo", beta=2.0, divergence="js")(drawn.outputs, drawn.batch)["metrics"]
    assert float(metrics["chosen_reward"]) == pytest.approx(-2 * math.log1p(math.exp(-1)))


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_finite_however_far_apart_the_pair(lead: float, divergence: Any) -> None:
    outputs = {
        "chosen_logps": torch.tensor([-1.0 + min(lead, 0)]),
        "rejected_logps": torch.tensor([-1.0 - max(lead, 0)]),
    }
    ref = {"ref_chosen_logps": torch.tensor([-1.0]), "ref_rejected_logps": torch.tensor([-1.0])}
    loss, gradients = loss_and_gradients(resolve_loss("f_dpo", beta=1.0, divergence=divergence), outputs, ref)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, ("alpha", 1.1), ("alpha", -0.1), ("divergence", "kl")])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^f_dpo: {kwarg}: "):
        resolve_loss("f_dpo", **{kwarg: value})


def test_alpha_is_refused_where_it_has_no_effect() -> None:
    with pytest.raises(LossConfigError, match="alpha: has no effect with divergence js"):
        resolve_loss("f_dpo", divergence="js", alpha=0.3)
