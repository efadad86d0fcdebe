import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import loss_and_gradients
from references.preference import BAD_BETAS, BETAS, MODES, Example, kto, sigmoid
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

LOGPS = st.floats(-8, 0, width=32)
EXAMPLES = st.lists(st.builds(Example, LOGPS, LOGPS, st.booleans(), LOGPS, LOGPS), max_size=5)
WEIGHTS = st.sampled_from([0.0, 1.0, 1.5])


def tensors(examples: list[Example], *, kl: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    columns = {name: torch.tensor([getattr(one, name) for one in examples]) for name in Example._fields}
    batch = {"ref_logps": columns["ref_logp"].double(), "desirable": columns["desirable"].bool()}
    if kl:
        batch |= {"kl_logps": columns["kl_logp"].double(), "ref_kl_logps": columns["ref_kl_logp"].double()}
    return {"logps": columns["logp"].double()}, batch


@pytest.mark.parametrize(
    ("examples", "kwargs", "expected"),
    [
        pytest.param([Example(-10.0, -11.0, True)], {"beta": 0.5}, sigmoid(-0.5), id="desirable, raised"),
        pytest.param([Example(-10.0, -11.0, False)], {"beta": 0.5}, sigmoid(0.5), id="undesirable, raised"),
        pytest.param([Example(-10.0, -11.0, True, -2.0, -3.0)], {}, 0.5, id="as far as the divergence"),
        pytest.param([Example(-1.0, -1.0, True, -3.0, -2.0)], {}, 0.5, id="a negative divergence is none"),
        pytest.param([Example(-1.0, -1.0, True)], {"desirable_weight": 3.0}, 1.5, id="weighted"),
        pytest.param(
            [Example(-1.0, -1.0, True), Example(-2.0, -2.0, False)], {"undesirable_weight": 0}, 0.25, id="one class"
        ),
        pytest.param([], {}, 0.0, id="nothing"),
    ],
)
def test_a_loss_by_hand(examples: list[Example], kwargs: Any, expected: float) -> None:
    assert resolve_loss("kto", **kwargs)(*tensors(examples))["loss"].item() == pytest.approx(expected, rel=1e-12)


@given(EXAMPLES, BETAS, WEIGHTS, WEIGHTS, MODES)
def test_it_is_the_formula(
    examples: list[Example], beta: float, desirable: float, undesirable: float, mode: str
) -> None:
    weights = {"desirable_weight": desirable, "undesirable_weight": undesirable}
    loss = resolve_loss("kto", beta=beta, reduction=mode, **weights)(*tensors(examples))["loss"]
    expected = torch.tensor(kto(examples, beta, **weights), dtype=torch.float64)
    if mode != "none":
        expected = expected.sum() / (max(len(examples), 1) if mode == "mean" else 1)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)


@given(EXAMPLES, BETAS)
def test_the_gradient_is_that_of_the_sigmoid_and_none_is_that_of_the_divergence(
    examples: list[Example], beta: float
) -> None:
    outputs, batch = tensors(examples)
    outputs["kl_logps"] = batch.pop("kl_logps")
    leaves = {name: tensor.requires_grad_() for name, tensor in outputs.items()}
    torch.autograd.backward(resolve_loss("kto", beta=beta, reduction="sum")(leaves, batch)["loss"])
    assert leaves["kl_logps"].grad is None
    expected = [
        beta * value * (1 - value) * (-1 if one.desirable else 1)
        for one, value in zip(examples, kto(examples, beta), strict=True)
    ]
    assert leaves["logps"].grad is not None
    torch.testing.assert_close(leaves["logps"].grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-8, atol=1e-12)


def test_without_mismatched_completions_there_is_no_divergence() -> None:
    examples = [Example(-3.0, -5.0, True), Example(-2.0, -4.0, False)]
    with_zeros, without = (resolve_loss("kto")(*tensors(examples, kl=kl)) for kl in (True, False))
    assert with_zeros["loss"] == without["loss"]
    assert without["metrics"]["kl"] == 0


@pytest.mark.parametrize(("given_", "missing"), [("kl_logps", "ref_kl_logps"), ("ref_kl_logps", "kl_logps")])
def test_half_a_divergence_is_refused(given_: str, missing: str) -> None:
    outputs, batch = tensors([Example(-3.0, -5.0, True)])
    del batch[missing]
    with pytest.raises(LossInputError, match=f"^kto: '{missing}' must be given"):
        resolve_loss("kto")(outputs, batch)


@pytest.mark.parametrize(
    ("desirable", "expected"),
    [
        pytest.param([True, False], [0.5, -1.0, 1.5], id="both"),
        pytest.param([True, True], [-0.25, 0.0, 0.0], id="none undesirable"),
        pytest.param([False, False], [0.0, -0.25, 0.0], id="none desirable"),
        pytest.param([], [0.0, 0.0, 0.0], id="nothing"),
    ],
)
def test_the_metrics_are_means_over_each_class(desirable: list[bool], expected: list[float]) -> None:
    gains = ((-10.0, -11.0), (-13.0, -11.0))
    examples = [Example(*gain, good) for gain, good in zip(gains, desirable, strict=False)]
    metrics = resolve_loss("kto", beta=0.5)(*tensors(examples))["metrics"]
    assert list(metrics) == ["chosen_reward", "rejected_reward", "reward_margin", "kl"]
    assert [float(metric) for metric in metrics.values()] == [*expected, 0.0]
    assert resolve_loss("kto", metrics=False)(*tensors(examples))["metrics"] == {}


@pytest.mark.parametrize("gain", [1e4, -1e4])
def test_it_is_finite_however_far_from_the_reference(gain: float) -> None:
    batch = {"ref_logps": torch.tensor([min(-gain, 0.0)] * 2), "desirable": torch.tensor([True, False])}
    loss, gradients = loss_and_gradients(
        resolve_loss("kto", beta=1.0), {"logps": torch.tensor([min(gain, 0.0)] * 2)}, batch
    )
    assert loss == 0.5
    assert (gradients["logps"] == 0).all()


@pytest.mark.parametrize(
    ("kwarg", "value"),
    [*BAD_BETAS, ("desirable_weight", -0.1), ("undesirable_weight", -1), ("desirable_weight", math.nan)],
)
def test_a_kwarg_out_of_range_is_refused(kwarg: str, value: Any) -> None:
    with pytest.raises(LossConfigError, match=rf"^kto: {kwarg}: "):
        resolve_loss("kto", **{kwarg: value})
