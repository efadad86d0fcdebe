"""`LossSpec`: the `loss:` section of a user's own config model."""

import importlib
import json
import pickle
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from tensafe.training.losses import LossConfigError, LossSpec, UnknownLossError, resolve_loss

pytestmark = pytest.mark.usefixtures("isolated_registry")


class TrainingConfig(BaseModel):
    """A user's own."""

    loss: LossSpec
    extra_losses: list[LossSpec] = []
    evaluation: LossSpec | None = None
    steps: int = 10


# In a model of one's own


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("token_ce", {"type": "token_ce"}),
        ({"type": "token_ce"}, {"type": "token_ce"}),
        ({"type": "token_ce", "kwargs": None, "inputs": None}, {"type": "token_ce"}),
        ({"type": "token_ce", "kwargs": {"shift": False}}, {"type": "token_ce", "kwargs": {"shift": False}}),
        ({"type": "mse", "inputs": {"targets": "batch.y"}}, {"type": "mse", "inputs": {"targets": "batch.y"}}),
        ("my_package.losses:fn", {"type": "my_package.losses:fn"}),
        (
            {"type": "my_package.losses.fn", "kwargs": {"anything": [1, {"a": None}]}},
            {"type": "my_package.losses.fn", "kwargs": {"anything": [1, {"a": None}]}},
        ),
    ],
)
def test_a_loss_in_a_model_of_ones_own(given: Any, expected: dict[str, Any]) -> None:
    wanted = {"kwargs": {}, "inputs": {}, **expected}
    config = TrainingConfig(loss=given, extra_losses=[given, "mse"], evaluation=given)
    assert config.loss.model_dump() == wanted
    assert config.extra_losses == [config.loss, LossSpec(type="mse")]
    assert config.evaluation == config.loss == LossSpec.model_validate(given)
    assert TrainingConfig.model_validate(config.model_dump()) == config
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    assert TrainingConfig(loss=config.loss).loss == config.loss
    assert pickle.loads(pickle.dumps(config)) == config
    assert TrainingConfig.model_validate(yaml.safe_load(json.dumps({"loss": given}))).loss == config.loss


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        pytest.param("tokence", ["Cannot resolve loss 'tokence'", "did you mean token_ce?"], id="name"),
        pytest.param({"type": "mze"}, ["type: Cannot resolve", "did you mean mse?"], id="type"),
        pytest.param({"kwargs": {}}, ["type: required key is missing"], id="no type"),
        pytest.param(None, ["got null"], id="null"),
        pytest.param(3, ["expected the name of a loss or a mapping", "got 3"], id="number"),
        pytest.param(["mse"], ["got list"], id="list"),
        pytest.param(
            {"type": "mse", "kwargs": {"reductin": "sum"}}, ["kwargs.reductin", "mean reduction?"], id="kwarg"
        ),
        pytest.param({"type": "mse", "reduction": "sum"}, ["reduction: belongs under kwargs"], id="misplaced"),
        pytest.param({"type": "token_ce", "kwargs": {"label_smoothing": 2}}, ["a number in [0, 1], got 2"], id="value"),
        pytest.param(
            {"type": "mse", "inputs": {"target": "y"}}, ["inputs.target", "did you mean targets?"], id="tensor"
        ),
        pytest.param("my_package.losses:fn()", ["is no dotted path"], id="path"),
        pytest.param("os:system", ["is not a loss"], id="gadget"),
        pytest.param(
            {"type": "weighted_sum", "kwargs": {"losses": [{"type": "mse", "kwargs": {"x": 1}}, "os:system"]}},
            ["kwargs.losses.0.kwargs.x: unknown argument of mse", "kwargs.losses.1"],
            id="nested",
        ),
    ],
)
def test_a_mistake_is_found_when_the_config_is_read(given: Any, parts: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(loss=given)
    (details,) = caught.value.errors(include_url=False, include_input=False)
    assert details["loc"] == ("loss",)
    assert all(part in details["msg"] for part in parts), details["msg"]
    inner = details["ctx"]["error"]
    assert isinstance(inner, LossConfigError)
    assert inner.problems
    with pytest.raises(ValidationError) as in_list:
        TrainingConfig(loss="mse", extra_losses=["mse", given])
    assert in_list.value.errors(include_url=False)[0]["loc"] == ("extra_losses", 1)


def test_keys_that_are_no_strings_are_no_keywords() -> None:
    for validate in (LossSpec.model_validate, lambda data: TrainingConfig.model_validate({"loss": data})):
        with pytest.raises(ValidationError, match="required key is missing"):
            validate({1: 2, None: 3})


def test_the_text_of_an_error_ends_even_if_that_of_the_data_does_not() -> None:
    bomb: Any = 1
    for _ in range(40):
        bomb = [bomb, bomb]
    with pytest.raises(ValidationError) as caught:
        LossSpec.model_validate({"type": "mse", "kwargs": {"reduction": bomb}})
    assert "expected one of none, sum, mean, got list" in str(caught.value)
    assert len(str(caught.value)) < 500


def _deep(levels: int) -> Any:
    data: Any = 1
    for _ in range(levels):
        data = [data]
    return data


def test_data_nested_too_deep_is_refused() -> None:
    spec: dict[str, Any] = {"type": "my_package.losses:fn", "kwargs": {"fine": _deep(90), "deep": _deep(3000)}}
    with pytest.raises(LossConfigError, match="deep: data is nested more than 100 deep") as caught:
        LossSpec(**spec)
    assert [problem.loc for problem in caught.value.problems] == [("kwargs", "deep")]


def test_mistakes_in_two_specs_are_reported_together() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(
            {"loss": "mze", "evaluation": {"type": "mse", "kwargs": {"x": 1}}, "steps": "many"}
        )
    assert [details["loc"] for details in caught.value.errors()] == [("loss",), ("evaluation",), ("steps",)]


# On its own


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"type": "mze"}, "unknown-loss"),
        ({"type": "mse", "kwargs": {"reductin": 1}}, "unknown-kwarg"),
        ({"type": "mse", "kwarg": {}}, "unknown-key"),
        ({"type": 3}, "invalid-value"),
        ({}, "missing-key"),
        ({"type": "a:b:c"}, "malformed-target"),
        ({"type": "pickle:loads"}, "unsafe-target"),
    ],
)
def test_the_constructor_raises_our_own_error(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(LossConfigError) as caught:
        LossSpec(**fields)
    assert caught.value.problems[0].code == code
    assert "input_value" not in str(caught.value)


def test_a_spec_is_frozen_and_resolves() -> None:
    spec = LossSpec(type="mse", kwargs={"reduction": "sum"})
    with pytest.raises(ValidationError, match="frozen"):
        spec.type = "token_ce"  # type: ignore[misc]
    assert resolve_loss(spec) == resolve_loss("mse", reduction="sum")
    assert resolve_loss(spec, reduction="none").kwargs["reduction"] == "none"
    assert resolve_loss(spec.type, **spec.kwargs) == resolve_loss(spec)


def test_a_path_is_looked_at_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, package: str | None = None) -> Any:
        raise AssertionError(f"imported {name}")

    monkeypatch.setattr("tensafe.training.losses.targets.import_module", refuse)
    monkeypatch.setattr(importlib, "import_module", refuse)
    for path in ("nowhere.at_all:fn", "nowhere.at_all.fn", "torch.nn.functional:mse_loss"):
        assert TrainingConfig.model_validate({"loss": {"type": path, "kwargs": {"a": 1}}}).loss.type == path
    monkeypatch.undo()
    with pytest.raises(UnknownLossError, match="there is no 'nowhere'"):
        resolve_loss(LossSpec(type="nowhere.at_all:fn"))


def test_a_dotted_path_in_a_term_is_not_imported_either() -> None:
    terms = ["nowhere.at_all:fn", {"type": "nowhere.else:fn", "weight": 0.5, "kwargs": {"a": 1}}]
    spec = LossSpec(type="weighted_sum", kwargs={"losses": terms})
    assert spec.kwargs == {"losses": terms}
    with pytest.raises(LossConfigError) as caught:
        resolve_loss(spec)
    assert [problem.loc for problem in caught.value.problems] == [
        ("kwargs", "losses", 0),
        ("kwargs", "losses", 1, "type"),
    ]
