import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import Rows, loss_and_gradients, reduced
from references.policy import MAX_LENGTH, MODES, Sampled, kwargs_of, sampled
from tensafe.training.losses import LossConfigError, LossInputError, resolve_loss

Term = tuple[float, float]


def term(value: float, old: float, target: float, epsilon: float | None) -> Term:
    """Half of the squared error, and its slope; a value that left the range is judged where it left it, if worse."""
    plain = (value - target) ** 2 / 2, value - target
    if epsilon is None or abs(value - old) <= epsilon:
        return plain
    edge = old + math.copysign(epsilon, value - old)
    return plain if plain[0] >= (edge - target) ** 2 / 2 else ((edge - target) ** 2 / 2, 0.0)


def batch_of(values: Any, returns: Any, old: Any = None, mask: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    values, returns = (torch.tensor([x], dtype=torch.float64) for x in (values, returns))
    counts = torch.ones_like(values, dtype=torch.bool) if mask is None else torch.tensor([mask])
    batch = {"returns": returns, "mask": counts}
    return {"values": values}, batch if old is None else {**batch, "old_values": torch.tensor([old]).double()}


@pytest.mark.parametrize(
    ("value", "old", "target", "kwargs", "expected", "slope"),
    [
        pytest.param(0.1, 0.0, 1.0, {}, 0.405, -0.9, id="within the range"),
        pytest.param(0.5, 0.0, 1.0, {"epsilon": 0.25}, 0.28125, 0.0, id="no gain beyond it"),
        pytest.param(0.5, 0.0, 0.0, {"epsilon": 0.25}, 0.125, 0.5, id="it may come back"),
        pytest.param(-0.5, 0.0, -1.0, {"epsilon": 0.25}, 0.28125, 0.0, id="downwards"),
        pytest.param(0.5, 0.0, 1.0, {"epsilon": None}, 0.125, -0.5, id="no clip"),
        pytest.param(1.0, 1.0, 1.0, {}, 0.0, 0.0, id="right"),
    ],
)
def test_a_token_by_hand(
    value: float, old: float, target: float, kwargs: dict[str, Any], expected: float, slope: float
) -> None:
    loss, gradients = loss_and_gradients(resolve_loss("value_clip", **kwargs), *batch_of([value], [target], [old]))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert gradients["values"].item() == pytest.approx(slope, rel=1e-12)


def tensors_of(drawn: Sampled) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    batch = {"returns": drawn.ref_logps, "old_values": drawn.old_logps, "mask": drawn.mask}
    return {"values": drawn.logps}, batch


@given(sampled(), st.sampled_from(MODES), st.sampled_from([None, 0.1, 1.0]))
def test_it_is_the_formula(drawn: Sampled, mode: str, epsilon: float | None) -> None:
    columns = (drawn.logps, drawn.old_logps, drawn.ref_logps, drawn.mask)
    table = zip(*(column.tolist() for column in columns), strict=True)
    terms = [[(term(v, o, r, epsilon), float(m)) for v, o, r, m in zip(*row, strict=True)] for row in table]
    rows: Rows = [[(value, weight) for (value, _), weight in row] for row in terms]
    loss_fn = resolve_loss("value_clip", epsilon=epsilon, **kwargs_of("value_clip", mode))
    loss, gradients = loss_and_gradients(loss_fn, *tensors_of(drawn))
    total = loss.sum().item()
    assert total == pytest.approx(reduced(rows, "sum" if mode == "none" else mode, max_length=MAX_LENGTH), abs=1e-11)
    if mode in {"none", "sum"}:
        slopes = [[slope * weight for (_, slope), weight in row] for row in terms]
        expected = torch.tensor(slopes, dtype=torch.float64).reshape(drawn.logps.shape)
        torch.testing.assert_close(gradients["values"], expected, rtol=1e-9, atol=1e-11)


@given(sampled(), st.sampled_from([math.nan, math.inf, -math.inf, 1e300]))
def test_masked_tokens_have_no_effect(drawn: Sampled, junk: float) -> None:
    outputs, batch = tensors_of(drawn)
    spoilt = {
        name: tensor if name == "mask" else torch.where(drawn.mask, tensor, junk)
        for name, tensor in {**outputs, **batch}.items()
    }
    loss_fn = resolve_loss("value_clip")
    clean, gradients = loss_and_gradients(loss_fn, outputs, batch)
    found, others = loss_and_gradients(loss_fn, {"values": spoilt.pop("values")}, spoilt)
    assert torch.equal(found, clean)
    assert torch.equal(others["values"], gradients["values"])


def test_metrics_by_hand() -> None:
    outputs, batch = batch_of(
        [1.0, 0.1, -1.0, 9.0], [2.0, 1.0, 0.0, 9.0], [0.0, 0.0, 0.0, 0.0], [True, True, True, False]
    )
    metrics = resolve_loss("value_clip")(outputs, batch)["metrics"]
    found = {name: float(metric) for name, metric in metrics.items()}
    assert found == pytest.approx({"value_mean": 0.1 / 3, "return_mean": 1.0, "clip_fraction": 1 / 3})
    assert sorted(resolve_loss("value_clip", epsilon=None)(outputs, batch)["metrics"]) == ["return_mean", "value_mean"]
    assert resolve_loss("value_clip", metrics=False)(outputs, batch)["metrics"] == {}


def test_old_values_are_needed_for_the_clip_alone() -> None:
    outputs, batch = batch_of([1.0], [0.0])
    assert resolve_loss("value_clip", epsilon=None)(outputs, batch)["loss"] == 0.5
    with pytest.raises(LossInputError, match=r"^value_clip: 'old_values' must be given"):
        resolve_loss("value_clip")(outputs, batch)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, True])
def test_a_range_out_of_range_is_refused(epsilon: Any) -> None:
    with pytest.raises(LossConfigError, match=r"^value_clip: epsilon: "):
        resolve_loss("value_clip", epsilon=epsilon)
