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
    cdpo,
    check,
    each,
    loss_of,
)
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.5, "label_smoothing": 0.0}, math.log1p(math.exp(-1)), id="no smoothing"),
        pytest.param(EVEN, {"beta": 0.5, "label_smoothing": 0.25}, math.log1p(math.exp(-1)) + 0.25, id="a quarter"),
        pytest.param(Pair(-1.0, -2.0, -1.0, -2.0), {}, math.log(2), id="at the reference"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("cdpo", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(), BETAS, SMOOTHINGS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, label_smoothing: float, mode: str
) -> None:
    check("cdpo", each(cdpo), drawn, mode, beta=beta, label_smoothing=label_smoothing)


@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_finite_however_far_apart_the_pair(lead: float) -> None:
    outputs = {
        "chosen_logps": torch.tensor([-1.0 + min(lead, 0)]),
        "rejected_logps": torch.tensor([-1.0 - max(lead, 0)]),
    }
    ref = {"ref_chosen_logps": torch.tensor([-1.0]), "ref_rejected_logps": torch.tensor([-1.0])}
    loss, gradients = loss_and_gradients(resolve_loss("cdpo", beta=1.0), outputs, ref)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


@pytest.mark.parametrize("epsilon", [0.1, 0.3])
def test_it_is_least_where_the_odds_are_those_of_the_labels(epsilon: float) -> None:
    best = math.log((1 - epsilon) / epsilon)
    pairs = [Pair(-10.0 + best + step, -10.0) for step in (-0.1, 0.0, 0.1)]
    low, at, high = (loss_of("cdpo", pair, beta=1.0, label_smoothing=epsilon) for pair in pairs)
    assert at < low
    assert at < high


def test_the_smoothing_is_a_tenth_unless_given() -> None:
    assert resolve_loss("cdpo").kwargs["label_smoothing"] == 0.1


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, *BAD_SMOOTHINGS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^cdpo: {kwarg}: "):
        resolve_loss("cdpo", **{kwarg: value})
