import math
from typing import Any

import pytest
import torch
from hypothesis import given

from reference import loss_and_gradients
from references.preference import BAD_BETAS, BETAS, EVEN, MODES, Batch, Pair, apo_zero, batches, check, each, loss_of
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.5}, 2 / (1 + math.exp(0.5)), id="as it should be"),
        pytest.param(Pair(-1.0, -2.0, -1.0, -2.0), {}, 1.0, id="at the reference"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("apo_zero", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(), BETAS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(drawn: Batch, beta: float, mode: str) -> None:
    check("apo_zero", each(apo_zero), drawn, mode, beta=beta)


@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_finite_however_far_apart_the_pair(lead: float) -> None:
    outputs = {
        "chosen_logps": torch.tensor([-1.0 + min(lead, 0)]),
        "rejected_logps": torch.tensor([-1.0 - max(lead, 0)]),
    }
    ref = {"ref_chosen_logps": torch.tensor([-1.0]), "ref_rejected_logps": torch.tensor([-1.0])}
    loss, gradients = loss_and_gradients(resolve_loss("apo_zero", beta=1.0), outputs, ref)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


def test_both_completions_are_moved_apart() -> None:
    drawn = Batch([Pair(-1.0, -2.0, -1.0, -2.0)], lengths=False)
    _, gradients = loss_and_gradients(resolve_loss("apo_zero", beta=1.0), drawn.outputs, drawn.batch)
    assert gradients["chosen_logps"].item() == pytest.approx(-0.25)
    assert gradients["rejected_logps"].item() == pytest.approx(0.25)


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^apo_zero: {kwarg}: "):
        resolve_loss("apo_zero", **{kwarg: value})
