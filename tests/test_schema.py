"""The JSON Schema says what the validator says, wherever JSON Schema can."""

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from jaxtyping import Float
from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from support import run_child
from tensafe.training.losses import (
    ElementLoss,
    Elements,
    Loss,
    LossConfigError,
    NestedLoss,
    UnknownLossError,
    register_loss,
    resolve_loss,
)
from tensafe.training.losses.nested import TERM_SCHEMA
from tensafe.training.losses.registry import builtin_names, unregister
from tensafe.training.losses.resolve import check_spec
from tensafe.training.losses.schema import loss_schema, schema_files, training_config_schema

COMMITTED = Path(__file__).resolve().parents[1] / "schemas"
BUILTIN = sorted(builtin_names())
CONFIG = training_config_schema(BUILTIN)


def errors(schema: Any, data: Any) -> list[tuple[tuple[str | int, ...], str]]:
    """What a schema finds wrong: path and message."""
    return [(tuple(error.absolute_path), error.message) for error in Draft7Validator(schema).iter_errors(data)]


def token_ce(**kwargs: Any) -> dict[str, Any]:
    return {"type": "token_ce", "kwargs": kwargs}


def weighted(*terms: Any) -> dict[str, Any]:
    return {"type": "weighted_sum", "kwargs": {"losses": list(terms)}}


# The files


def test_committed_files_are_up_to_date() -> None:
    committed = {path.relative_to(COMMITTED).as_posix(): path for path in COMMITTED.rglob("*.json")}
    assert {name: path.read_text("utf-8") for name, path in committed.items()} == schema_files()


def test_there_is_a_file_for_each_loss_and_one_for_the_config() -> None:
    assert set(schema_files()) == {"training_config.json", *(f"losses/{name}.json" for name in BUILTIN)}
    assert set(schema_files(["mse"])) == {"training_config.json", "losses/mse.json"}


@pytest.mark.parametrize("text", [pytest.param(text, id=path) for path, text in schema_files().items()])
def test_files_are_draft_7_and_stand_alone(text: str) -> None:
    schema = json.loads(text)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    Draft7Validator.check_schema(schema)
    assert text.endswith("}\n")
    references = set(re.findall(r'"\$ref": "([^"]*)"', text))
    assert references <= {f"#/definitions/{name}" for name in schema.get("definitions", {})}


def test_making_them_imports_no_torch() -> None:
    code = """
import sys
from tensafe.training.losses.schema import schema_files
print(len(schema_files()), "torch" in sys.modules, "jaxtyping" in sys.modules)
"""
    assert run_child(code) == f"{len(BUILTIN) + 1} False False"


# The kwargs of one loss


@pytest.mark.parametrize("name", BUILTIN)
def test_a_loss_says_what_it_is_and_describes_each_kwarg(name: str) -> None:
    schema = loss_schema(name, BUILTIN)
    assert schema["title"] == name
    assert len(schema["description"].splitlines()) == 1
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    for kwarg, described in schema["properties"].items():
        assert described["description"], kwarg
        assert "title" not in described
        assert ("default" in described) is (kwarg not in schema.get("required", []))


@pytest.mark.parametrize(
    ("kwarg", "expected"),
    [
        ("label_smoothing", {"type": "number", "minimum": 0, "maximum": 1, "default": 0.0}),
        ("ignore_index", {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1, "default": -100}),
        ("shift", {"type": "boolean", "default": True}),
        ("max_length", {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 2**63 - 1}, {"type": "null"}]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ranges_and_defaults(kwarg: str, expected: dict[str, Any]) -> None:
    found = loss_schema("token_ce")["properties"][kwarg]
    assert {key: found[key] for key in expected} == expected


def test_choices() -> None:
    assert loss_schema("mse")["properties"]["reduction"]["enum"] == ["none", "sum", "mean"]


def test_unknown_name() -> None:
    with pytest.raises(UnknownLossError, match="did you mean token_ce"):
        loss_schema("tokn_ce")


def test_schema_of_a_combinator_stands_alone() -> None:
    schema = loss_schema("weighted_sum", BUILTIN)
    assert errors(schema, {"losses": ["mse", weighted(token_ce(shift=True))]}) == []
    path = ("losses", 0, "kwargs", "losses", 1, "kwargs", "label_smoothing")
    assert errors(schema, {"losses": [weighted("mse", token_ce(label_smoothing=2))]}) == [
        (path, "2 is greater than the maximum of 1")
    ]


# The section `loss` of a config

GOOD: dict[str, Any] = {
    "bare-name": "token_ce",
    "bare-path": "my_package.losses:focal",
    "bare-path-of-dots": "my_package.losses.focal",
    "path-beyond-ascii": "mód.перте:φ",
    "type-alone": {"type": "mse"},
    "null-kwargs-and-inputs": {"type": "mse", "kwargs": None, "inputs": None},
    "integer-for-a-number": token_ce(label_smoothing=1),
    "null-max-length": token_ce(max_length=None),
    "max-length": token_ce(reduction="sequence_sum_norm", max_length=1),
    "least-integer": token_ce(ignore_index=-(2**63)),
    "inputs": {"type": "token_ce", "inputs": {"labels": "batch.targets"}},
    "path": {"type": "a.b:c", "kwargs": {"anything": [1, {"x": None}]}, "inputs": {"logits": "z"}},
    "terms": weighted("mse", "a:b", {"type": "mse", "weight": 2, "name": "x", "inputs": {"targets": "y"}}),
    "terms-in-terms": weighted(weighted({**weighted(token_ce()), "weight": 0.5, "name": None})),
}

BAD: dict[str, tuple[Any, tuple[str | int, ...], str]] = {
    "unknown-kwarg": (token_ce(label_smothing=0.1), ("kwargs",), "'label_smothing' was unexpected"),
    "wrong-type": (token_ce(label_smoothing="0.1"), ("kwargs", "label_smoothing"), "not of type 'number'"),
    "bool-for-number": (token_ce(label_smoothing=True), ("kwargs", "label_smoothing"), "not of type 'number'"),
    "number-for-bool": (token_ce(shift=1), ("kwargs", "shift"), "not of type 'boolean'"),
    "fraction-for-integer": (token_ce(ignore_index=0.5), ("kwargs", "ignore_index"), "not of type 'integer'"),
    "too-big-integer": (token_ce(ignore_index=2**63), ("kwargs", "ignore_index"), "greater than the maximum"),
    "too-small-integer": (token_ce(ignore_index=-(2**63) - 1), ("kwargs", "ignore_index"), "less than the minimum"),
    "out-of-range": (token_ce(label_smoothing=1.5), ("kwargs", "label_smoothing"), "greater than the maximum of 1"),
    "open-range": ({"type": "contrastive", "kwargs": {"temperature": 0}}, ("kwargs", "temperature"), "minimum of 0"),
    "bad-choice": (token_ce(reduction="avg"), ("kwargs", "reduction"), "'avg' is not one of"),
    "choice-of-another": ({"type": "mse", "kwargs": {"reduction": "sequence_mean"}}, ("kwargs", "reduction"), "one of"),
    "max-length-alone": (token_ce(max_length=4), ("kwargs", "max_length"), "not of type 'null'"),
    "no-max-length": (token_ce(reduction="sequence_sum_norm"), ("kwargs",), "'max_length' is a required property"),
    "null-max-length": (
        token_ce(reduction="sequence_sum_norm", max_length=None),
        ("kwargs", "max_length"),
        "not of type 'integer'",
    ),
    "unknown-loss": ({"type": "xent", "kwargs": {"x": 1}}, ("type",), "'xent' is not one of"),
    "unknown-bare-loss": ("xent", (), "'xent' is not one of"),
    "missing-letter": ({"type": "tokn_ce"}, ("type",), "'token_ce' was expected"),
    "wrong-letter": ("token-ce", (), "'token_ce' was expected"),
    "one-letter-too-many": ("token_cee", (), "'token_ce' was expected"),
    "swapped-letters": (weighted("mse", {"type": "tokne_ce"}), ("kwargs", "losses", 1, "type"), "'token_ce' was"),
    "number-as-type": ({"type": 5}, ("type",), "5 is not of type 'string'"),
    "number-as-loss": (5, (), "5 is not of type 'string', 'object'"),
    "bad-path": ({"type": "a:b:c"}, ("type",), "'a:b:c' does not match"),
    "bad-bare-path": ("a.b.", (), "'a.b.' does not match"),
    "number-in-path": ("a.2b", (), "'a.2b' does not match"),
    "misplaced-kwarg": ({"type": "mse", "reduction": "sum"}, (), "'reduction' was unexpected"),
    "misspelt-key": ({"type": "mse", "kwarg": {}}, (), "'kwarg' was unexpected"),
    "no-type": ({"kwargs": {"margin": 1}}, (), "'type' is a required property"),
    "kwargs-list": ({"type": "mse", "kwargs": []}, ("kwargs",), "not of type 'object', 'null'"),
    "inputs-list": ({"type": "mse", "inputs": []}, ("inputs",), "not of type 'object', 'null'"),
    "unknown-tensor": ({"type": "mse", "inputs": {"target": "y"}}, ("inputs",), "'target' was unexpected"),
    "empty-key": ({"type": "mse", "inputs": {"targets": ""}}, ("inputs", "targets"), "''"),
    "inputs-of-terms": ({**weighted("mse"), "inputs": {"targets": "y"}}, ("inputs",), "'targets' was unexpected"),
    "counts-in-path": ({"type": "a:b", "kwargs": {"num_items_in_batch": 1}}, ("kwargs",), "False schema"),
    "inputs-of-path": ({"type": "a:b", "inputs": {"x": 5}}, ("inputs", "x"), "not of type 'string'"),
    "null": (None, (), "None"),
    "list": (["mse"], (), "['mse']"),
    "no-terms": (weighted(), ("kwargs", "losses"), "[]"),
    "required-kwargs": ({"type": "weighted_sum"}, (), "'kwargs' is a required property"),
    "required-kwarg": ({"type": "weighted_sum", "kwargs": {}}, ("kwargs",), "'losses' is a required property"),
    "null-required-kwargs": ({"type": "weighted_sum", "kwargs": None}, ("kwargs",), "not of type 'object'"),
    "bare-with-required-kwargs": ("weighted_sum", (), "'weighted_sum' is not of type 'object'"),
    "bare-with-line-break": ("weighted_sum\n", (), "'weighted_sum\\n'"),
    "term-of-unknown-loss": (weighted("mse", "msee"), ("kwargs", "losses", 1), "'msee' is not one of"),
    "term-with-bad-weight": (weighted({"type": "mse", "weight": "1"}), ("kwargs", "losses", 0, "weight"), "'number'"),
    "term-with-empty-name": (weighted({"type": "mse", "name": ""}), ("kwargs", "losses", 0, "name"), "''"),
    "term-with-unknown-key": (weighted({"type": "mse", "wieght": 1}), ("kwargs", "losses", 0), "'wieght'"),
    "term-that-is-no-number": (
        weighted({"type": "mse", "kwargs": {"reduction": "none"}}),
        ("kwargs", "losses", 0, "kwargs", "reduction"),
        "'none' does not match",
    ),
    "term-in-a-term": (
        weighted("mse", weighted("mse", token_ce(margn=1))),
        ("kwargs", "losses", 1, "kwargs", "losses", 1, "kwargs"),
        "'margn' was unexpected",
    ),
}


@pytest.mark.parametrize("loss", [pytest.param(loss, id=name) for name, loss in GOOD.items()])
def test_good_losses(loss: Any) -> None:
    assert errors(CONFIG, {"loss": loss, "optimizer": {"anything": 1}}) == []
    assert check_spec(loss) == []


@pytest.mark.parametrize(("loss", "path", "message"), [pytest.param(*row, id=name) for name, row in BAD.items()])
def test_each_mistake_is_one_error_at_its_place(loss: Any, path: tuple[str | int, ...], message: str) -> None:
    found = errors(CONFIG, {"loss": loss})
    assert [at for at, _ in found] == [("loss", *path)], found
    assert message in found[0][1]
    assert len(check_spec(loss)) == 1


def test_a_config_has_a_loss() -> None:
    assert errors(CONFIG, {"los": "mse"}) == [((), "'loss' is a required property")]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(token_ce(ignore_index=5.0), id="integral-float"),
        pytest.param({"type": "contrastive", "kwargs": {"margin": 2**63}}, id="big-integer-for-a-number"),
        pytest.param(weighted({"type": "mse", "name": "x"}, {"type": "mse", "name": "x"}), id="repeated-name"),
        pytest.param("a.b:c‿‿—", id="no-identifier-beyond-ascii"),
    ],
)
def test_where_the_validator_knows_more(loss: Any) -> None:
    assert errors(CONFIG, {"loss": loss}) == []
    assert len(check_spec(loss)) == 1


@pytest.mark.parametrize("name", BUILTIN)
def test_snippets_are_good_losses(name: str) -> None:
    untyped = CONFIG["definitions"]["loss-form"]["anyOf"][-1]
    (body,) = (snippet["body"] for snippet in untyped["defaultSnippets"] if snippet["label"] == name)
    filled_in = json.loads(json.dumps(body).replace("$1", "mse"))
    assert filled_in["type"] == name
    assert check_spec(filled_in) == []
    assert errors(CONFIG, {"loss": filled_in}) == []


def test_completion_before_a_type_is_written_knows_every_kwarg_and_whose_it_is() -> None:
    untyped = next(rule for rule in CONFIG["definitions"]["loss-rules"]["allOf"] if "not" in rule["if"])
    kwargs = untyped["then"]["properties"]["kwargs"]["properties"]
    assert set(kwargs) == {kwarg for name in BUILTIN for kwarg in loss_schema(name)["properties"]}
    assert "contrastive: Additive margin" in kwargs["margin"]["description"]
    assert "margin_ranking: Distance" in kwargs["margin"]["description"]
    assert not any("default" in schema for schema in kwargs.values())


# What others register


@pytest.fixture
def cleanup() -> Iterator[list[str]]:
    """Names to forget after the test."""
    registered: list[str] = []
    yield registered
    for name in registered:
        unregister(name)


class Weighting(BaseModel):
    """How much, and what.

    With a second paragraph.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    amount: int = Field(gt=0, description="How much.")
    loss: NestedLoss


class Flat(BaseModel):
    """A term that is written flat."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=TERM_SCHEMA)

    loss: NestedLoss
    share: float


def focal(  # type: ignore[no-untyped-def]
    outputs: Any,
    batch: Any,
    gamma: float,
    mode: Literal["hard", "soft"] = "soft",
    free=None,
    start: float = math.inf,
    weighting: Weighting | None = None,
    hook: "Iterator[int] | None" = None,
    num_items_in_batch: Any = None,
) -> float:
    """Down-weight what is easy.

    A second paragraph.
    """
    return 0.0


def test_function(cleanup: list[str]) -> None:
    register_loss("softened", focal)
    cleanup.append("softened")
    schema = loss_schema("softened")
    assert (schema["title"], schema["description"]) == ("softened", "Down-weight what is easy.")
    assert schema["required"] == ["gamma"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["gamma"] == {"type": "number"}
    assert properties["mode"] == {"enum": ["hard", "soft"], "type": "string", "default": "soft"}
    assert properties["free"] == {"default": None}
    assert properties["start"] == {"type": "number"}  # JSON has no infinity
    assert properties["hook"]["default"] is None
    assert "num_items_in_batch" not in properties
    assert schema["definitions"]["softened.Weighting"]["description"] == "How much, and what."
    weighting = {"amount": 1, "loss": token_ce(shift=False)}
    assert errors(schema, {"gamma": 2, "weighting": weighting}) == []
    (problem,) = errors(schema, {"gamma": 2, "weighting": {**weighting, "amount": 0}})
    assert problem[0] == ("weighting",)
    Draft7Validator.check_schema(schema)


def test_function_with_kwargs(cleanup: list[str]) -> None:
    @register_loss("open_loss")
    def open_loss(outputs: Any, batch: Any, alpha: int = 1, **kwargs: Any) -> float:
        return 0.0

    cleanup.append("open_loss")
    schema = training_config_schema(["open_loss"])
    for kwargs in ({"alpha": 2, "beta": "x"}, {"alpha": "x"}, {"num_items_in_batch": 3}):
        loss = {"type": "open_loss", "kwargs": kwargs}
        assert (errors(schema, {"loss": loss}) == []) is (check_spec(loss) == []), kwargs
    assert loss_schema("open_loss")["additionalProperties"] is True


class Scaled:
    """Scale something."""

    def __call__(self, outputs: Any, batch: Any, scale: float = 2.0) -> float:
        return scale


@pytest.mark.parametrize(
    ("loss", "kwarg", "default", "description"),
    [
        pytest.param(Scaled(), "scale", 2.0, "Scale something.", id="instance"),
        pytest.param(partial(focal, gamma=3.0), "gamma", 3.0, "Down-weight what is easy.", id="partial"),
        pytest.param(resolve_loss(focal, gamma=4.0), "gamma", 4.0, "Down-weight what is easy.", id="resolved-function"),
        pytest.param(resolve_loss("contrastive", margin=0.5), "margin", 0.5, "Symmetric InfoNCE", id="resolved"),
        pytest.param(lambda outputs, batch, a=1: 0.0, "a", 1, "", id="lambda"),
    ],
)
def test_what_is_registered_with_kwargs(
    loss: Any, kwarg: str, default: Any, description: str, cleanup: list[str]
) -> None:
    register_loss("ready", loss)
    cleanup.append("ready")
    schema = loss_schema("ready")
    assert schema["properties"][kwarg]["default"] == default
    assert schema["description"].startswith(description)
    assert schema["title"] == "ready"
    assert "required" not in schema
    assert errors(training_config_schema(["ready"]), {"loss": "ready"}) == []


def test_loss_with_a_kwarg_that_json_cannot_hold(cleanup: list[str]) -> None:
    class Odd(ElementLoss, name="odd"):
        """Odd."""

        model_config = ConfigDict(arbitrary_types_allowed=True)

        where: Scaled = Field(default=Scaled(), description="Where.")
        pair: tuple[int, float] = Field(default=(1, 2.0), strict=False, description="Two numbers.")

        def compute(self, x: Float[Tensor, " batch"]) -> Elements:
            raise NotImplementedError

    cleanup.append("odd")
    schema = loss_schema("odd")
    assert schema["properties"]["where"]["description"] == "Where."
    assert "default" not in schema["properties"]["where"]
    assert errors(schema, {"pair": [1, 0.5]}) == []
    assert [path for path, _ in errors(schema, {"pair": ["x", 0.5]})] == [("pair", 0)]


def test_nested_losses_wherever_they_stand(cleanup: list[str]) -> None:
    class Mixed(Loss, name="loss"):  # the name of a section is a fine name for a loss
        """Mixed."""

        loss: NestedLoss = Field(description="The main one.")
        teacher: NestedLoss | None = Field(default=None, description="A second one.")
        others: dict[str, NestedLoss] = Field(default={}, description="By name.")
        plain: Weighting | None = Field(default=None, description="Not flat.")
        flat: Flat | None = Field(default=None, description="Flat.")

        def __call__(self, outputs: Any, batch: Any) -> Any:
            raise NotImplementedError

    cleanup.append("loss")
    schema = training_config_schema(["loss", "mse", "token_ce"])
    Draft7Validator.check_schema(schema)
    assert schema["definitions"]["loss"]["properties"]["loss"]["description"] == "The main one."

    def found(**kwargs: Any) -> list[tuple[str | int, ...]]:
        return [path[2:] for path, _ in errors(schema, {"loss": {"type": "loss", "kwargs": {"loss": "mse", **kwargs}}})]

    inner = {"type": "loss", "kwargs": {"loss": token_ce(shift=1)}}
    assert found(teacher="token_ce", others={"a": token_ce(), "b": "x:y"}) == []
    assert found(loss=inner) == [("loss", "kwargs", "loss", "kwargs", "shift")]
    assert found(others={"a": "x:y:z"}) == [("others", "a")]
    assert found(plain={"amount": 1, "loss": "mse"}, flat={"type": "mse", "share": 1}) == []
    assert found(plain={"type": "mse", "amount": 1}) == [("plain",)]
    assert found(flat={"type": "mse"}) == [("flat",)]
    assert found(flat="mse") == [("flat",)]


def test_every_registered_loss_is_offered_by_default(cleanup: list[str]) -> None:
    register_loss("mine", focal)
    cleanup.append("mine")
    assert errors(training_config_schema(), {"loss": {"type": "mine", "kwargs": {"gamma": 1}}}) == []
    assert errors(CONFIG, {"loss": {"type": "mine"}}) != []
    assert "mine" not in schema_files()["training_config.json"]


def test_a_broken_loss_breaks_nothing_but_itself(cleanup: list[str], caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ElementLoss, name="broken"):
        """Broken."""

        def compute(self, x: int) -> Elements:
            raise NotImplementedError

    cleanup.append("broken")
    assert "broken" not in training_config_schema()["definitions"]
    assert "'broken' is left out" in caplog.text
    with pytest.raises(LossConfigError, match="not annotated as"):
        loss_schema("broken")


def test_a_name_that_nothing_has_is_an_error() -> None:
    with pytest.raises(LossConfigError, match="not registered"):
        training_config_schema(["mse", "nothing"])
