"""Code written against the public TenSafe finds the same names, in the same modules, with the same words in errors."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch

import tensafe.training.losses as losses
import tensafe.training.losses.base as base
import tensafe.training.losses.registry as registry

pytestmark = pytest.mark.usefixtures("isolated_registry")


def simple(outputs: Any, batch: Any, **kwargs: Any) -> Any:
    return {"loss": torch.tensor(0.5)}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *[
            ("base", name)
            for name in ("LossFn", "LossOutput", "LossReturn", "validate_loss_return", "wrap_simple_loss")
        ],
        *[("registry", name) for name in ("LOSS_REGISTRY", "get_registered_losses", "register_loss", "resolve_loss")],
    ],
)
def test_names_lie_where_they_lay(module: str, name: str) -> None:
    there = importlib.import_module(f"tensafe.training.losses.{module}")
    assert getattr(there, name) is getattr(losses, name)
    names: dict[str, Any] = {}
    exec(f"from tensafe.training.losses.{module} import {name}", names)
    assert names[name] is getattr(losses, name)


def test_a_name_that_registry_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resolve_los'"):
        registry.resolve_los  # noqa: B018


def test_signatures_are_the_same() -> None:
    assert list(inspect.signature(base.validate_loss_return).parameters) == ["result", "strict"]
    assert inspect.signature(base.validate_loss_return).parameters["strict"].default is False
    assert list(inspect.signature(base.wrap_simple_loss).parameters) == ["fn", "name"]
    assert list(inspect.signature(registry.register_loss).parameters)[:2] == ["name", "fn"]


# The registry


def test_the_registry_maps_names_to_what_was_registered() -> None:
    registry.register_loss("mine", simple)
    assert isinstance(registry.LOSS_REGISTRY, Mapping)
    assert registry.LOSS_REGISTRY["mine"] is simple
    assert "mine" in registry.LOSS_REGISTRY
    assert dict(registry.LOSS_REGISTRY)["mine"] is simple
    assert {"token_ce", "margin_ranking", "contrastive", "mse"} <= registry.LOSS_REGISTRY.keys()
    for name in ("token_ce", "margin_ranking", "contrastive", "mse"):
        assert losses.resolve_loss(registry.LOSS_REGISTRY[name]).name == name


def test_the_copy_of_the_registry_is_a_dict_of_ones_own() -> None:
    copy = registry.get_registered_losses()
    assert type(copy) is dict
    copy["mine"] = simple
    assert "mine" not in registry.LOSS_REGISTRY
    assert "mine" not in registry.get_registered_losses()


# Words that programs look for in errors


def test_already_registered() -> None:
    registry.register_loss("mine", simple)
    with pytest.raises(ValueError, match="already registered"):
        registry.register_loss("mine", lambda outputs, batch: 0.0)


@pytest.mark.parametrize("name", ["unknown_loss", "token_cee"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match="Cannot resolve loss") as caught:
        losses.resolve_loss(name)
    assert "Available built-in losses: " in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("path", ["no_such_package.losses:fn", "tensafe.training:no_such_loss", "no_such_package.fn"])
def test_a_path_to_nowhere(path: str) -> None:
    with pytest.raises(ValueError, match="Cannot resolve loss"):
        losses.resolve_loss(path)


@pytest.mark.parametrize("result", [{}, {"metrics": {}}, {"value": 1.0}, None, "0.5"])
def test_a_return_without_a_loss(result: Any) -> None:
    with pytest.raises(ValueError, match="must return dict with 'loss' key"):
        base.validate_loss_return(result)
    with pytest.raises(ValueError, match="must return dict with 'loss' key"):
        losses.resolve_loss(lambda outputs, batch: result)({}, {})


def test_what_is_no_loss_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a loss is resolved from"):
        losses.resolve_loss(42)  # type: ignore[call-overload]


# Returns


def test_a_return_is_validated_in_every_form() -> None:
    loss = torch.tensor(1.5, requires_grad=True)
    metrics, auxiliary = {"accuracy": 0.5}, {"logits": torch.ones(2)}
    assert base.validate_loss_return(loss) == {"loss": loss, "metrics": {}}
    assert base.validate_loss_return(1.5) == {"loss": 1.5, "metrics": {}}
    assert base.validate_loss_return(2)["loss"] == 2
    full = base.validate_loss_return(base.LossOutput(loss, metrics, auxiliary))
    assert full == {"loss": loss, "metrics": metrics, "auxiliary": auxiliary}
    assert full["loss"] is loss
    assert base.validate_loss_return({"loss": loss, "metrics": metrics}, strict=True)["metrics"] == metrics


def test_a_loss_output_has_fields_and_a_dict() -> None:
    output = base.LossOutput(loss=1.0)
    assert (output.loss, output.metrics, output.auxiliary) == (1.0, {}, {})
    assert output.to_dict() == {"loss": 1.0, "metrics": {}, "auxiliary": {}}
    assert output.metrics is not base.LossOutput(loss=1.0).metrics
    assert base.LossOutput(1.0, {"a": 1.0}) == base.LossOutput(loss=1.0, metrics={"a": 1.0})


def test_loss_fn_is_a_runtime_protocol() -> None:
    loss_fn: base.LossFn = losses.resolve_loss("mse")
    assert isinstance(loss_fn, base.LossFn)
    assert isinstance(simple, base.LossFn)
    assert isinstance(base.wrap_simple_loss(simple), base.LossFn)
    assert not isinstance(3, base.LossFn)
    inputs = {"predictions": torch.ones(2)}, {"targets": torch.zeros(2)}
    assert loss_fn(outputs=inputs[0], batch=inputs[1])["loss"] == loss_fn(*inputs)["loss"] == 1.0


def test_loss_return_has_the_public_keys() -> None:
    assert base.LossReturn.__annotations__.keys() == {"loss", "metrics", "auxiliary"}


def test_a_simple_loss_is_wrapped_registered_and_resolved() -> None:
    registry.register_loss("simple", base.wrap_simple_loss(lambda outputs, batch: outputs["x"] * 2, name="simple"))
    assert losses.resolve_loss("simple")({"x": torch.tensor(2.0)}, {}) == {"loss": torch.tensor(4.0), "metrics": {}}
