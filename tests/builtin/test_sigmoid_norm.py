import math
from typing import Any

import pytest
from hypothesis import given

from references.preference import (
    BAD_BETAS,
    BETAS,
    EVEN,
    MODES,
    Batch,
    Pair,
    batches,
    check,
    each,
    loss_of,
    sigmoid_norm,
)
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(
            EVEN._replace(chosen_length=5, rejected_length=4), {"beta": 2.0}, math.log1p(math.exp(-0.9)), id="per token"
        ),
        pytest.param(EVEN, {"beta": 0.5}, math.log1p(math.exp(-1)), id="of one token"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("sigmoid_norm", pair, lengths=True, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(lengths=True), BETAS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(drawn: Batch, beta: float, mode: str) -> None:
    check("sigmoid_norm", each(sigmoid_norm), drawn, mode, beta=beta)


def test_it_asks_for_lengths() -> None:
    with pytest.raises(LossInputError, match=r"^sigmoid_norm: 'chosen_lengths' or 'chosen_logits' must be given"):
        loss_of("sigmoid_norm", EVEN)


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^sigmoid_norm: {kwarg}: "):
        resolve_loss("sigmoid_norm", **{kwarg: value})
