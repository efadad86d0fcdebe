import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from references.preference import (
    BAD_BETAS,
    BAD_SMOOTHINGS,
    BETAS,
    MODES,
    SMOOTHINGS,
    Batch,
    Pair,
    batches,
    check,
    each,
    loss_of,
    simpo,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(
            Pair(-10.0, -12.0, chosen_length=5, rejected_length=4),
            {"beta": 2.0, "gamma": 0.5},
            math.log1p(math.exp(-1.5)),
            id="per token",
        ),
        pytest.param(
            Pair(-10.0, -12.0, chosen_length=5, rejected_length=4),
            {"gamma": 1.0, "label_smoothing": 0.25},
            math.log1p(math.exp(-1)) + 0.25,
            id="smoothed",
        ),
        pytest.param(Pair(-2.0, -2.0), {"gamma": 0}, math.log(2), id="a tie"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("simpo", pair, reference=False, lengths=True, **kwargs).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-14
    )


@given(batches(reference=False, lengths=True), BETAS, st.sampled_from([0.0, 0.5, 3.0]), SMOOTHINGS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, gamma: float, label_smoothing: float, mode: str
) -> None:
    check("simpo", each(simpo), drawn, mode, beta=beta, gamma=gamma, label_smoothing=label_smoothing)


def test_it_asks_for_lengths() -> None:
    with pytest.raises(LossInputError, match=r"^simpo: 'chosen_lengths' or 'chosen_logits' must be given"):
        loss_of("simpo", Pair(-2.0, -3.0), reference=False)


def test_a_reference_in_the_batch_is_not_looked_at() -> None:
    pair = Pair(-10.0, -12.0, -11.0, -9.0, 5, 4)
    assert loss_of("simpo", pair, lengths=True) == loss_of("simpo", pair, reference=False, lengths=True)


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, *BAD_SMOOTHINGS, ("gamma", -0.1)])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^simpo: {kwarg}: "):
        resolve_loss("simpo", **{kwarg: value})
