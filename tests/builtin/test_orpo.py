import math
from typing import Any

import pytest
import torch
from hypothesis import given

from reference import loss_and_gradients
from references.preference import BAD_BETAS, BETAS, MODES, Batch, Pair, batches, check, each, loss_of, orpo
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(
            Pair(math.log(0.5), math.log(0.25)), {"beta": 1.0}, math.log(2) + math.log(4 / 3), id="odds of 1 and 1/3"
        ),
        pytest.param(
            Pair(2 * math.log(0.5), 3 * math.log(0.5), 0, 0, 2, 3), {"beta": 0.5}, 1.5 * math.log(2), id="equal odds"
        ),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("orpo", pair, reference=False, lengths=True, **kwargs).item() == pytest.approx(
        expected, rel=1e-12, abs=1e-14
    )


@given(batches(reference=False, lengths=True), BETAS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(drawn: Batch, beta: float, mode: str) -> None:
    check("orpo", each(orpo), drawn, mode, beta=beta)


def test_a_likelihood_that_is_given_is_used() -> None:
    drawn, loss_fn = (
        Batch([Pair(-10.0, -12.0, chosen_length=5, rejected_length=4)], reference=False),
        resolve_loss("orpo"),
    )
    own = loss_fn(drawn.outputs, drawn.batch)["loss"]
    other = loss_fn(drawn.outputs, {**drawn.batch, "chosen_nll": torch.tensor([7.0])})["loss"]
    assert float(other - own) == pytest.approx(7.0 - 10.0 / 5)


def test_it_asks_for_lengths() -> None:
    with pytest.raises(LossInputError, match=r"^orpo: 'chosen_lengths' or 'chosen_logits' must be given"):
        loss_of("orpo", Pair(-2.0, -3.0), reference=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-9, -1.0), (-1.0, -1e-9), (-1e4, -1.0), (-1.0, -1e4), (-1e4, -1e4)],
)
def test_it_is_finite_however_likely(dtype: torch.dtype, chosen: float, rejected: float) -> None:
    outputs = {"chosen_logps": torch.tensor([chosen]), "rejected_logps": torch.tensor([rejected])}
    lengths = {"chosen_lengths": torch.tensor([1]), "rejected_lengths": torch.tensor([1])}
    wide = {name: tensor.to(dtype) for name, tensor in outputs.items()}
    loss, gradients = loss_and_gradients(resolve_loss("orpo", beta=1.0), wide, lengths)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


def test_the_odds_are_exact_for_what_is_almost_certain() -> None:
    outputs = {"chosen_logps": torch.tensor([-1e-5]), "rejected_logps": torch.tensor([math.log(0.5)])}
    lengths = {"chosen_lengths": torch.tensor([1]), "rejected_lengths": torch.tensor([1])}
    loss, gradients = loss_and_gradients(resolve_loss("orpo", beta=1.0), outputs, lengths)
    assert loss.item() == pytest.approx(1e-5 + math.log1p(math.expm1(1e-5)), rel=1e-5)  # odds of 1 / expm1(1e-5) to 1
    assert gradients["chosen_logps"].item() == pytest.approx(-2.0, rel=1e-4)


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^orpo: {kwarg}: "):
        resolve_loss("orpo", **{kwarg: value})
