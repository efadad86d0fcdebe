from typing import Any

import pytest
from hypothesis import assume, given

from reference import loss_and_gradients
from references.preference import BAD_BETAS, BETAS, EVEN, MODES, Batch, Pair, batches, check, each, hinge_dpo, loss_of
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.25}, 0.5, id="within the margin"),
        pytest.param(EVEN, {"beta": 0.5}, 0.0, id="by the margin"),
        pytest.param(EVEN, {"beta": 2.0}, 0.0, id="apart"),
        pytest.param(Pair(-12.0, -10.0, -11.0, -11.0), {"beta": 1.0}, 3.0, id="the wrong way"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("hinge_dpo", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(), BETAS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(drawn: Batch, beta: float, mode: str) -> None:
    assume(all(abs(beta * pair.lead - 1) > 1e-3 for pair in drawn.pairs))  # no slope at the kink
    check("hinge_dpo", each(hinge_dpo), drawn, mode, beta=beta)


def test_the_gradient_stops_at_the_margin() -> None:
    drawn = Batch([EVEN, Pair(-12.0, -10.0, -11.0, -11.0)], lengths=False)
    _, gradients = loss_and_gradients(resolve_loss("hinge_dpo", beta=1.0, reduction="sum"), drawn.outputs, drawn.batch)
    assert gradients["chosen_logps"].tolist() == [0.0, -1.0]
    assert gradients["rejected_logps"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^hinge_dpo: {kwarg}: "):
        resolve_loss("hinge_dpo", **{kwarg: value})
