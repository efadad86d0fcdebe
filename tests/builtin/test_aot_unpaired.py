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
    aot_unpaired,
    apart,
    batches,
    check,
    loss_of,
)
from tensafe.training.losses import LossConfigError, resolve_loss


@pytest.mark.parametrize(
    ("pair", "kwargs", "expected"),
    [
        pytest.param(EVEN, {"beta": 0.5}, math.log1p(math.exp(-1)), id="one pair is dpo"),
        pytest.param(
            EVEN,
            {"beta": 0.5, "label_smoothing": 0.25},
            math.log1p(math.exp(-1)) + 0.25,
            id="one smoothed pair is cdpo",
        ),
    ],
)
def test_a_loss_by_hand(pair: Pair, kwargs: Any, expected: float) -> None:
    assert loss_of("aot_unpaired", pair, **kwargs).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@given(batches(), BETAS, SMOOTHINGS, MODES)
def test_it_is_the_formula_and_the_gradient_its_slope(
    drawn: Batch, beta: float, label_smoothing: float, mode: str
) -> None:
    apart([pair.gains[0] for pair in drawn.pairs])  # a step of the slope must not change the order
    apart([pair.gains[1] for pair in drawn.pairs])
    check("aot_unpaired", aot_unpaired, drawn, mode, beta=beta, label_smoothing=label_smoothing)


@pytest.mark.parametrize("lead", [1e4, -1e4])
def test_it_is_finite_however_far_apart_the_pair(lead: float) -> None:
    outputs = {
        "chosen_logps": torch.tensor([-1.0 + min(lead, 0)]),
        "rejected_logps": torch.tensor([-1.0 - max(lead, 0)]),
    }
    ref = {"ref_chosen_logps": torch.tensor([-1.0]), "ref_rejected_logps": torch.tensor([-1.0])}
    loss, gradients = loss_and_gradients(resolve_loss("aot_unpaired", beta=1.0), outputs, ref)
    assert loss.isfinite()
    assert all(gradient.isfinite() for gradient in gradients.values())


def test_what_is_compared_has_the_same_rank() -> None:
    pairs = [Pair(-1.0, -3.0, -2.0, -5.0), Pair(-4.0, -3.0, -2.0, -2.0), Pair(-2.0, -2.0, -2.0, -2.5)]
    values = loss_of("aot_unpaired", *pairs, beta=1.0, reduction="none")
    expected = [math.log1p(math.exp(-lead)) for lead in (1 - 2, -2 + 1, 0 - 0.5)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_a_pair_without_tokens_has_no_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "chosen_logits": torch.randn(3, 3, 5, generator=generator),
        "rejected_logits": torch.randn(3, 3, 5, generator=generator),
        "chosen_labels": torch.tensor([[0, 1, 2], [0, -100, -100], [0, 3, -100]]),
        "rejected_labels": torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4]]),
        "ref_chosen_logps": torch.tensor([-3.0, math.nan, -1.0]),
        "ref_rejected_logps": torch.tensor([-2.0, 5.0, -4.0]),
    }
    loss_fn = resolve_loss("aot_unpaired")
    without = loss_fn({name: tensor[[0, 2]] for name, tensor in batch.items()}, {})
    found = loss_fn(batch, {})
    torch.testing.assert_close(found["loss"], without["loss"])
    for name, metric in without["metrics"].items():
        assert float(found["metrics"][name]) == pytest.approx(float(metric))


@pytest.mark.parametrize(("kwarg", "value"), [*BAD_BETAS, *BAD_SMOOTHINGS])
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^aot_unpaired: {kwarg}: "):
        resolve_loss("aot_unpaired", **{kwarg: value})
