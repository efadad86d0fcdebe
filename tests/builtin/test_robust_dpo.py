import math
from typing import Any

import pytest
import torch
from hypothesis import given

from reference import loss_and_gradients
from references.preference import (
    BAD_BETAS,
    BAD_SMOOTHINGS,
    BETAS,
    EVEN,
    MODES,
    SMOOTHINGS,
    Batch,
    Pair,
    batches,
    check,
    each,
    loss_of,
    robust_dpo,
)
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.5, "label_smoothing": 0.0}, math.log1p(math.exp(-1)), id="no smoothing"),
        pytest.param(EVEN, {"beta": 0.5, "label_smoothing": 0.25}, math.log1p(math.exp(-1)) - 0.5, id="a quarter"),
        pytest.param(Pair(-1.0, -2.0, -1.0, -2.0), {}, math.log(2), id="at the reference"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("robust_dpo", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(), BETAS, SMOOTHINGS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, label_smoothing: float, mode: str
) -> None:
    check("robust_dpo", each(robust_dpo), drawn, mode, beta=beta, label_smoothing=label_smoothing)


@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_finite_however_far_apart_the_pair(lead: float) -> None:
    outputs = {
        "chosen_logps": torch.tensor([-1.0 + min(lead, 0)]),
        "rejected_logps": torch.tensor([-1.0 - max(lead, 0)]),
    }
    ref = {"ref_chosen_logps": torch.tensor([-1.0]), "ref_rejected_logps": torch.tensor([-1.0])}
    loss, gradients = loss_and_gradients(resolve_loss("robust_dpo", beta=1.0), outputs, ref)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


@pytest.mark.parametrize("epsilon", [0.1, 0.4])
def test_over_swapped_labels_it_is_dpo_on_average(epsilon: float) -> None:
    pair = Pair(-3.0, -5.0, -4.0, -4.5)
    swapped = Pair(-5.0, -3.0, -4.5, -4.0)
    right, wrong = (loss_of("robust_dpo", one, label_smoothing=epsilon) for one in (pair, swapped))
    torch.testing.assert_close((1 - epsilon) * right + epsilon * wrong, loss_of("dpo", pair))


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, *BAD_SMOOTHINGS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^robust_dpo: {kwarg}: "):
        resolve_loss("robust_dpo", **{kwarg: value})
