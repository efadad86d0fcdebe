import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from references.preference import BAD_BETAS, BETAS, EVEN, MODES, Batch, Pair, batches, check, each, loss_of, rpo
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(
            Pair(-10.0, -12.0, -11.0, -11.0, 5, 4), {"beta": 0.5}, math.log1p(math.exp(-1)) + 2, id="both terms"
        ),
        pytest.param(
            Pair(-10.0, -12.0, -11.0, -11.0, 5, 4),
            {"beta": 0.5, "alpha": 0.25},
            math.log1p(math.exp(-1)) + 0.5,
            id="a quarter of the second",
        ),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("rpo", pair, lengths=True, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(lengths=True, empty=False), BETAS, st.sampled_from([0.0, 0.3, 2.0]), MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(drawn: Batch, beta: float, alpha: float, mode: str) -> None:
    check("rpo", each(rpo), drawn, mode, beta=beta, alpha=alpha)


def test_a_likelihood_that_is_given_is_used() -> None:
    drawn, loss_fn = Batch([Pair(-10.0, -12.0, -11.0, -11.0, 5, 4)]), resolve_loss("rpo")
    own = loss_fn(drawn.outputs, drawn.batch)["loss"]
    other = loss_fn(drawn.outputs, {**drawn.batch, "chosen_nll": torch.tensor([7.0])})["loss"]
    assert float(other - own) == pytest.approx(7.0 - 10.0 / 5)


def test_it_asks_for_a_likelihood_unless_alpha_is_0() -> None:
    with pytest.raises(LossInputError, match=r"^rpo: 'chosen_nll' or 'chosen_lengths' or 'chosen_logits' must be"):
        loss_of("rpo", EVEN)
    assert loss_of("rpo", EVEN, alpha=0.0, beta=0.5).item() == pytest.approx(math.log1p(math.exp(-1)))


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, ("alpha", -0.1)])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^rpo: {kwarg}: "):
        resolve_loss("rpo", **{kwarg: value})
