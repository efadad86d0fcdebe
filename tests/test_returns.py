"""What a plain callable gives back: brought into one form, or refused with the name of who returned it."""

import gc
import weakref
from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tensafe.training.losses import (
    Loss,
    LossOutput,
    LossReturn,
    LossReturnError,
    register_loss,
    resolve_loss,
    validate_loss_return,
    wrap_simple_loss,
)

pytestmark = pytest.mark.usefixtures("isolated_registry")


def returning(result: Any, **kwargs: Any) -> LossReturn:
    """What comes out of a loss that returns `result`."""

    def returner(outputs: Any, batch: Any, reduction: str = "mean") -> Any:
        return result

    return resolve_loss(returner, **kwargs)({}, {})


# What is accepted


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(0.5, id="number"),
        pytest.param(torch.tensor(0.5), id="0-d tensor"),
        pytest.param(np.float64(0.5), id="numpy number"),
        pytest.param({"loss": 0.5}, id="dict"),
        pytest.param({"loss": torch.tensor(0.5), "metrics": None, "auxiliary": None}, id="empty parts"),
        pytest.param({"loss": 0.5, "metrics": {}, "auxiliary": {}}, id="all parts"),
        pytest.param(OrderedDict(loss=0.5), id="OrderedDict"),
        pytest.param(UserDict(loss=0.5), id="UserDict"),
        pytest.param(MappingProxyType({"loss": 0.5}), id="mapping proxy"),
        pytest.param(LossOutput(loss=0.5), id="LossOutput"),
        pytest.param(LossOutput(0.5, {"a": 1.0}, {"b": "text"}), id="full LossOutput"),
    ],
)
def test_every_form_of_a_result_becomes_one(result: Any) -> None:
    found = returning(result)
    assert type(found) is dict
    assert isinstance(found["loss"], Tensor)
    assert found["loss"] == 0.5
    assert set(found) <= {"loss", "metrics", "auxiliary"}
    assert isinstance(found["metrics"], dict)
    validated = validate_loss_return(result)
    assert type(validated) is dict
    assert validated["loss"] == 0.5


def test_an_integer_is_a_loss_and_keeps_its_graph() -> None:
    assert returning(3)["loss"].dtype == torch.float32
    leaf = torch.tensor(2.0, requires_grad=True)
    assert returning({"loss": leaf * 3})["loss"].requires_grad
    assert returning(leaf)["loss"] is leaf


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(float("nan"))])
def test_what_is_not_finite_is_passed_on(value: Any) -> None:
    assert not torch.isfinite(returning(value)["loss"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_a_loss_is_its_own(dtype: torch.dtype) -> None:
    assert returning(torch.tensor(0.5, dtype=dtype))["loss"].dtype == dtype


def test_an_unreduced_loss_needs_the_reduction_that_says_so() -> None:
    values = torch.tensor([1.0, 2.0])
    assert returning({"loss": values}, reduction="none")["loss"] is values
    assert returning(values, reduction="none")["loss"] is values
    with pytest.raises(LossReturnError, match=r"returner: 'loss' must be a scalar; got float32\[2\]\. Reduce it"):
        returning({"loss": values})


# What is refused


@pytest.mark.parametrize(
    ("result", "code", "parts"),
    [
        pytest.param(None, "not-a-loss-return", ["got NoneType", "return {'loss': loss}"], id="nothing"),
        pytest.param("0.5", "not-a-loss-return", ["got str"], id="text"),
        pytest.param(True, "not-a-loss-return", ["got bool"], id="bool"),
        pytest.param((torch.tensor(0.5), {}), "not-a-loss-return", ["got tuple"], id="tuple"),
        pytest.param([torch.tensor(0.5)], "not-a-loss-return", ["got list"], id="list"),
        pytest.param(object(), "not-a-loss-return", ["got object"], id="object"),
        pytest.param({}, "missing-loss", ["must return dict with 'loss' key", "got keys none"], id="empty dict"),
        pytest.param({"losss": 0.5}, "missing-loss", ["Is 'losss' a misspelt 'loss'?"], id="losss"),
        pytest.param({"Loss": 0.5}, "missing-loss", ["Is 'Loss' a misspelt 'loss'?"], id="case"),
        pytest.param({"value": 0.5}, "missing-loss", ["got keys 'value'"], id="another key"),
        pytest.param({1: 0.5}, "missing-loss", ["got keys 1"], id="key of another kind"),
        pytest.param(
            {"loss": 0.5, "metric": {}}, "unknown-return-key", ["'metric'", "Did you mean 'metrics'?"], id="metric"
        ),
        pytest.param(
            {"loss": 0.5, "accuracy": 1}, "unknown-return-key", ["'accuracy'", "under 'metrics'"], id="stray key"
        ),
        pytest.param({"loss": None}, "loss-not-scalar", ["'loss' must be a scalar", "got NoneType"], id="no loss"),
        pytest.param({"loss": "0.5"}, "loss-not-scalar", ["got str"], id="text as loss"),
        pytest.param({"loss": True}, "loss-not-scalar", ["got bool"], id="bool as loss"),
        pytest.param(
            {"loss": torch.tensor(1)}, "loss-not-scalar", ["got int64[]", "floating-point"], id="integer tensor"
        ),
        pytest.param({"loss": torch.tensor(True)}, "loss-not-scalar", ["got bool[]"], id="bool tensor"),
        pytest.param({"loss": torch.tensor(1j)}, "loss-not-scalar", ["got complex64[]"], id="complex tensor"),
        pytest.param({"loss": torch.ones(1)}, "loss-not-scalar", ["got float32[1]", "loss.mean()"], id="one element"),
        pytest.param(
            torch.ones(2, 3), "loss-not-scalar", ["got float32[2, 3]", "loss.mean()"], id="bare tensor with axes"
        ),
        pytest.param({"loss": {"loss": 0.5}}, "loss-not-scalar", ["got dict"], id="nested"),
        pytest.param(
            {"loss": 0.5, "metrics": [1]}, "invalid-return", ["'metrics' must be a dict", "got list"], id="metrics"
        ),
        pytest.param({"loss": 0.5, "metrics": {1: 2.0}}, "invalid-return", ["string keys"], id="key of a metric"),
        pytest.param({"loss": 0.5, "auxiliary": 3}, "invalid-return", ["'auxiliary' must be a dict"], id="auxiliary"),
        *[
            pytest.param(
                {"loss": 0.5, "metrics": {"a": value}}, "metric-not-scalar", ["metric 'a'", got], id=f"metric {got}"
            )
            for value, got in [
                (torch.ones(3), "float32[3]"),
                (torch.ones(1), "float32[1]"),
                ("0.5", "str"),
                (None, "NoneType"),
                ([0.5], "list"),
                ({"b": 0.5}, "dict"),
                (np.ones(3), "ndarray"),
            ]
        ],
    ],
)
def test_what_is_no_result_is_refused_by_name(result: Any, code: str, parts: list[str]) -> None:
    with pytest.raises(LossReturnError) as caught:
        returning(result)
    text = str(caught.value)
    assert caught.value.code == code
    assert caught.value.loss is not None
    assert text.startswith(f"{caught.value.loss}: ")
    assert "returner" in text
    assert all(part in text for part in parts), text
    assert "tensor(" not in text
    assert isinstance(caught.value, ValueError)


def test_a_registered_loss_is_checked_too() -> None:
    @register_loss("forgetful")
    def forgetful(outputs: Any, batch: Any) -> Any:
        outputs["x"] * 2

    with pytest.raises(LossReturnError, match="forgetful: must return dict with 'loss' key, or a scalar; got NoneType"):
        resolve_loss("forgetful")({"x": 1.0}, {})


def test_a_combinator_is_checked_too() -> None:
    class Wrong(Loss):
        """A combinator that returns a list."""

        def __call__(self, outputs: Any, batch: Any) -> Any:
            return [0.5]

    with pytest.raises(LossReturnError, match="must return dict with 'loss' key"):
        resolve_loss(Wrong())({}, {})


@pytest.mark.parametrize(
    "result",
    [
        pytest.param({f"{'x' * 100}\n{key}": 0.5 for key in range(1000)}, id="keys"),
        pytest.param({"loss": 0.5, "x\n" * 1000: 0.5}, id="stray key"),
        pytest.param({"loss": 0.5, "metrics": {"x\n" * 1000: "0.5"}}, id="metric"),
    ],
)
def test_the_message_stays_short(result: Any) -> None:
    with pytest.raises(LossReturnError) as caught:
        returning(result)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


# Metrics and auxiliary


def test_metrics_are_numbers_or_detached_scalars() -> None:
    leaf = torch.tensor(2.0, requires_grad=True)
    metrics = {
        "tensor": leaf * 2,
        "count": torch.tensor(3),
        "number": 0.5,
        "int": 2,
        "numpy": np.float32(0.5),
        "bool": True,
    }
    found = returning({"loss": leaf, "metrics": metrics})["metrics"]
    assert {name: float(value) for name, value in found.items()} == {
        "tensor": 4.0,
        "count": 3.0,
        "number": 0.5,
        "int": 2.0,
        "numpy": 0.5,
        "bool": 1.0,
    }
    assert not any(isinstance(value, Tensor) and value.requires_grad for value in found.values())
    assert found["count"].dtype == torch.int64  # type: ignore[union-attr]
    assert not hasattr(found["numpy"], "dtype")


def test_auxiliary_is_passed_on_detached() -> None:
    leaf = torch.tensor([2.0], requires_grad=True)
    thing = object()
    found = returning({"loss": 0.5, "auxiliary": {"values": leaf * 2, "thing": thing}})["auxiliary"]
    assert found["values"].tolist() == [4.0]
    assert not found["values"].requires_grad
    assert found["thing"] is thing
    assert "auxiliary" not in returning({"loss": 0.5})


def test_kept_metrics_do_not_keep_the_graph() -> None:
    logits = torch.ones(3, requires_grad=True) * 1.0
    dies = weakref.ref(logits)

    def fn(outputs: Any, batch: Any) -> dict[str, Any]:
        loss = outputs["logits"].square().mean()
        return {"loss": loss, "metrics": {"loss": loss, "max": outputs["logits"].max()}, "auxiliary": {"loss": loss}}

    result = resolve_loss(fn)({"logits": logits}, {})
    kept = result["metrics"], result["auxiliary"]
    del result, logits
    gc.collect()
    assert dies() is None
    assert float(kept[0]["max"]) == 1.0


def test_what_was_returned_is_left_as_it_was() -> None:
    leaf = torch.tensor(1.0, requires_grad=True)
    metrics, auxiliary = {"a": leaf * 2}, {"b": leaf * 3}
    found = returning({"loss": leaf, "metrics": metrics, "auxiliary": auxiliary})
    found["metrics"]["new"] = 1.0
    assert set(metrics) == {"a"}
    assert metrics["a"].requires_grad
    assert auxiliary["b"].requires_grad


# The two helpers of the public API


@pytest.mark.parametrize("result", [2.0, torch.tensor(2.0)])
def test_strict_validation_wants_a_mapping(result: Any) -> None:
    assert validate_loss_return(result) == {"loss": result, "metrics": {}}
    with pytest.raises(LossReturnError, match=r"must return dict with 'loss' key; got"):
        validate_loss_return(result, strict=True)
    assert validate_loss_return({"loss": result}, strict=True) == {"loss": result}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "result", [None, {}, {"losss": 1.0}, {"loss": 1.0, "x": 1}, {"loss": 1.0, "metrics": 3}, "loss"]
)
def test_validation_refuses_what_a_resolved_loss_would(result: Any, strict: bool) -> None:
    with pytest.raises(LossReturnError):
        validate_loss_return(result, strict=strict)


def test_validation_gives_a_new_dict_with_the_same_values() -> None:
    metrics = {"a": torch.ones(2)}
    given: LossReturn = {"loss": torch.tensor(1.0), "metrics": metrics}  # type: ignore[typeddict-item]
    found = validate_loss_return(given)
    assert found == given
    assert found is not given
    assert found["metrics"] is not metrics
    assert found["metrics"]["a"] is metrics["a"]


def test_a_simple_function_is_wrapped() -> None:
    def difference(outputs: Any, batch: Any, weight: float = 1.0) -> Any:
        """Subtract."""
        return weight * (outputs["x"] - batch["y"])

    wrapped = wrap_simple_loss(difference)
    assert wrapped({"x": 3.0}, {"y": 1.0}) == {"loss": 2.0, "metrics": {}}
    assert wrapped({"x": 3.0}, {"y": 1.0}, weight=0.5)["loss"] == 1.0
    assert wrapped.__doc__ == "Subtract."
    assert wrap_simple_loss(difference, name="gap").__name__ == "gap"  # type: ignore[attr-defined]
    assert difference.__name__ == "difference"
    assert resolve_loss(wrapped, weight=0.5)({"x": 3.0}, {"y": 1.0})["loss"] == 1.0
