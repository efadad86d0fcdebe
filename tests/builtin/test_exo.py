import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import loss_and_gradients
from references.preference import (
    BAD_BETAS,
    BAD_SMOOTHINGS,
    BETAS,
    MODES,
    Batch,
    Pair,
    batches,
    check,
    each,
    exo,
    loss_of,
)
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(Pair(-1.0, -1.0 - math.log(3)), {"beta": 1.0, "label_smoothing": 0.25}, 0.0, id="as the labels"),
        pytest.param(
            Pair(-1.0, -1.0 + math.log(3)),
            {"beta": 1.0, "label_smoothing": 0.25},
            0.5 * math.log(3),
            id="the other way round",
        ),
        pytest.param(
            Pair(-1.0, -2.0, -1.0, -2.0), {"label_smoothing": 0.25}, 0.5 * math.log(4 / 3), id="at the reference"
        ),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("exo", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(), BETAS, st.sampled_from([1e-3, 0.1, 0.45]), MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, label_smoothing: float, mode: str
) -> None:
    check("exo", each(exo), drawn, mode, beta=beta, label_smoothing=label_smoothing)


@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_finite_however_far_apart_the_pair(lead: float) -> None:
    outputs = {
        "chosen_logps": torch.tensor([-1.0 + min(lead, 0)]),
        "rejected_logps": torch.tensor([-1.0 - max(lead, 0)]),
    }
    ref = {"ref_chosen_logps": torch.tensor([-1.0]), "ref_rejected_logps": torch.tensor([-1.0])}
    loss, gradients = loss_and_gradients(resolve_loss("exo", beta=1.0), outputs, ref)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, *BAD_SMOOTHINGS, ("label_smoothing", 0.0)])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^exo: {kwarg}: "):
        resolve_loss("exo", **{kwarg: value})
