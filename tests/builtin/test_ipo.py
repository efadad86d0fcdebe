from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from references.preference import BAD_BETAS, BETAS, EVEN, MODES, Batch, Pair, batches, check, each, ipo, loss_of
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN._replace(chosen_length=5, rejected_length=4), {"beta": 0.5}, 0.3025, id="per token"),
        pytest.param(EVEN, {"beta": 0.5, "length_normalise": False}, 1.0, id="whole"),
        pytest.param(EVEN, {"beta": 0.25, "length_normalise": False}, 0.0, id="as it should be"),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("ipo", pair, lengths=kwargs.get("length_normalise", True), **kwargs).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-14
    )


@given(batches(lengths=True), BETAS, st.booleans(), MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, length_normalise: bool, mode: str
) -> None:
    check("ipo", each(ipo), drawn, mode, beta=beta, length_normalise=length_normalise)


def test_it_asks_for_lengths_unless_it_sums() -> None:
    with pytest.raises(LossInputError, match=r"^ipo: 'chosen_lengths' or 'chosen_logits' must be given"):
        loss_of("ipo", EVEN)
    assert loss_of("ipo", EVEN, length_normalise=False, beta=0.25) == 0


def test_the_rewards_are_what_it_compares() -> None:
    drawn = Batch([EVEN._replace(chosen_length=5, rejected_length=4)])
    metrics = resolve_loss("ipo", beta=0.5)(drawn.outputs, drawn.batch)["metrics"]
    assert float(metrics["chosen_reward"]) == pytest.approx(0.1)
    assert float(metrics["rejected_reward"]) == pytest.approx(-0.125)


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, ("length_normalise", 1)])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^ipo: {kwarg}: "):
        resolve_loss("ipo", **{kwarg: value})
